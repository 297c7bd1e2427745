"""Train the weights of the embedded backbones on plain scans: there are no small pretrained networks offline."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora.data.sources.embedded import plain_scans
from metalora.data.table import hash_of
from metalora.files import cache_dir, cached
from metalora.models.backbones.build import build_backbone
from metalora.models.model import Trainable
from metalora.train.optimizers import OPTIMIZERS
from metalora.train.schedule import warmup_cosine

_FILE = "weights.safetensors"
RECIPES: dict[str, dict[str, float]] = {
    "resnet20": {
        "version": 2,
        "epochs": 4,
        "batch_size": 64,
        "lr": 5e-3,
        "weight_decay": 0.05,
        "warmup_steps": 30,
        "seed": 0,
    },
    "mixer_tiny": {
        "version": 1,
        "epochs": 10,
        "batch_size": 64,
        "lr": 3e-3,
        "weight_decay": 0.3,
        "warmup_steps": 30,
        "seed": 0,
    },
}


def embedded_weights(name: str, say: Callable[[str], None]) -> Path:
    """Return the file of a network's weights; it is trained first if the cache has no weights, or damaged ones.

    It learns the digits of 3,000 plain scans that are in no task of the embedded data set. The name of its folder is a
    hash of the scans and the recipe.

    Args:
        name: One of `RECIPES`.
        say: Called with a message if the network is trained.
    """
    from safetensors.torch import save_file

    scans, digits = plain_scans()
    key = hash_of([json.dumps(RECIPES[name]), scans.tobytes(), digits.tobytes()])
    folder = cache_dir("weights") / f"{name}-{key}"

    def make(temporary: Path) -> None:
        say(f"training the embedded {name} on {len(scans)} plain scans (once; it is kept as {folder / _FILE})")
        images = torch.from_numpy(scans).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)
        save_file(_pretrain(name, images, torch.from_numpy(digits)), temporary / _FILE)

    return cached(folder, make) / _FILE


def _pretrain(name: str, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Train on images (N, 3, 28, 28), preprocessed, and labels (N,); return the network's state."""
    recipe = RECIPES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(recipe["seed"]))
        backbone = build_backbone(name, "none").requires_grad_(True).train()
        head = nn.Linear(backbone.num_features, int(labels.max()) + 1)
        named = [*backbone.named_parameters(), *head.named_parameters()]
        trained = [Trainable(name, parameter, "all") for name, parameter in named]
        batch = int(recipe["batch_size"])
        steps = len(images) // batch
        method = OPTIMIZERS.make({"name": "adamw", "weight_decay": recipe["weight_decay"]})
        optimizer = method.build(trained, recipe["lr"], {})
        schedule = warmup_cosine(optimizer, int(recipe["warmup_steps"]), int(recipe["epochs"]) * steps)
        for _ in range(int(recipe["epochs"])):
            order = torch.randperm(len(images))
            for rows in order[: steps * batch].split(batch):
                loss = F.cross_entropy(head(backbone(images[rows])), labels[rows])
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
    return {key: tensor.contiguous() for key, tensor in backbone.net.state_dict().items()}
