"""The embedded backbone: ResNet-20 trained on plain scans, since no small pretrained one can be had offline."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora.data.embedded import plain_scans
from metalora.data.table import hash_of
from metalora.files import atomic_file, cache_dir
from metalora.models.backbones import build_backbone
from metalora.train.optim import build_optimizer, warmup_cosine

RECIPE = {
    "version": 2,
    "epochs": 4,
    "batch_size": 64,
    "lr": 5e-3,
    "weight_decay": 0.05,
    "warmup_steps": 30,
    "seed": 0,
}


def embedded_weights(say: Callable[[str], None]) -> Path:
    """Return the file of ResNet-20's weights, training it first if the cache has none.

    It learns the digits of 3,000 plain scans that are in no task of the embedded data set. The file's name is a
    hash of the scans and of the recipe.

    Args:
        say: Told when training takes place.
    """
    from safetensors.torch import save_file

    scans, digits = plain_scans()
    key = hash_of([json.dumps(RECIPE), scans.tobytes(), digits.tobytes()])
    file = cache_dir("weights") / f"resnet20-{key}.safetensors"
    if not file.exists():
        say(f"training the embedded backbone on {len(scans)} plain scans (once; it is kept as {file})")
        images = torch.from_numpy(scans).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)
        state = _pretrain(images, torch.from_numpy(digits))
        with atomic_file(file) as path:
            save_file(state, path)
    return file


def _pretrain(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Train on images (N, 3, 28, 28), preprocessed, and labels (N,); return the network's state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(RECIPE["seed"]))
        backbone = build_backbone("resnet20", "none").requires_grad_(True).train()
        head = nn.Linear(backbone.num_features, int(labels.max()) + 1)
        trained = [*backbone.named_parameters(), *head.named_parameters()]
        batch = int(RECIPE["batch_size"])
        steps = len(images) // batch
        optimizer = build_optimizer(trained, RECIPE["lr"], 1.0, RECIPE["weight_decay"])
        schedule = warmup_cosine(optimizer, int(RECIPE["warmup_steps"]), int(RECIPE["epochs"]) * steps)
        for _ in range(int(RECIPE["epochs"])):
            order = torch.randperm(len(images))
            for rows in order[: steps * batch].split(batch):
                loss = F.cross_entropy(head(backbone(images[rows])), labels[rows])
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
    return {name: tensor.contiguous() for name, tensor in backbone.net.state_dict().items()}
