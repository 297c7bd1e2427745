"""What is frozen stays as it is, whatever its class; what is trained is saved."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, DropPath, EvoNorm2dB0
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import metalora
from metalora.errors import UserError

MakeModel = Callable[..., metalora.MetaLoRAModel]


class RunningScale(nn.Module):
    """A norm of one's own: it knows nothing of torch's batch norms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("hidden", torch.ones(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.scale.lerp_(x.std((0, 2, 3)), 0.3)
                self.hidden.mul_(1.1)
        return x / (self.scale * self.hidden)[:, None, None]


class Reassigned(RunningScale):
    """Its buffers are other tensors after each step."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale = self.scale.detach() * 1.2
        return x / self.scale[:, None, None]


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch_norm": lambda: nn.BatchNorm2d(8),
    "instance_norm": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "sync_batch_norm": lambda: nn.SyncBatchNorm(8),
    "evo_norm": lambda: EvoNorm2dB0(8),
    "batch_norm_act": lambda: BatchNormAct2d(8),
    "own": lambda: RunningScale(8),
    "reassigned": lambda: Reassigned(8),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1)),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), DropPath(0.5), nn.RReLU()),
}
norms = pytest.mark.parametrize("kind", list(NORMS))


def train(model: metalora.MetaLoRAModel, images: Tensor) -> None:
    optimizer = torch.optim.SGD(model.trainable().values(), 0.01)
    model.train()
    for step in range(2):
        optimizer.zero_grad()
        model(images + step).square().sum().backward()
        optimizer.step()
    model.eval()


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of parameters and of all buffers, those that a state dict leaves out included."""
    return {n: t.detach().clone() for n, t in (*module.named_parameters(), *module.named_buffers())}


@norms
@pytest.mark.parametrize("format", ["lora", "tr"])
def test_training_moves_nothing_that_is_frozen(
    kind: str, format: str, lively: MakeModel, net: Any, images: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net.blocks[0].bn1 = NORMS[kind]().eval()
    original = tensors(net)
    model = lively(format)
    trained = {id(parameter) for parameter in model.trainable().values()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in trained}
    before = tensors(model)
    train(model, images)
    after = tensors(model)
    assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} == names
    assert all(torch.equal(tensor, original[name]) for name, tensor in tensors(net).items())
    loaded = metalora.load(net, metalora.save(model, tmp_path / "adapter"))
    assert torch.equal(loaded(images), model(images))


@norms
def test_training_modes(kind: str, lively: MakeModel, net: Any, images: Tensor) -> None:
    net.blocks[0].bn1 = NORMS[kind]()
    model = lively("tr", modules_to_save=["blocks.1"])
    model.train()
    saved: Any = model.network.backbone.blocks[1]
    in_train_mode = {module for module in model.modules() if module.training}
    assert {*saved.modules(), *model.network.mapping.modules()} <= in_train_mode
    assert not set(model.extractor.modules()) & in_train_mode
    frozen = set(model.network.backbone.modules()) - set(saved.modules())
    assert not frozen & in_train_mode
    assert torch.equal(model(images), model(images))  # nothing is left to chance


@norms
def test_a_norm_trained_in_full_is_saved(
    kind: str, lively: MakeModel, net: Any, images: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net.blocks[0].bn1 = NORMS[kind]().eval()
    original = tensors(net)
    model = lively("tr", modules_to_save=["blocks.0.bn1"])
    before = tensors(model.network.backbone.blocks[0].bn1)
    train(model, images)
    after = tensors(model.network.backbone.blocks[0].bn1)
    if kind != "dropout":
        assert not all(torch.equal(after[name], tensor) for name, tensor in before.items())
    loaded = metalora.load(net, metalora.save(model, tmp_path / "adapter"))
    assert torch.equal(loaded(images), model(images))
    with loaded.disable_adapter():
        assert torch.equal(loaded(images), net(images))
    seed = model.seed(images).mean(0)
    model.merge(seed)
    merged = model(images)
    model.unmerge()
    assert torch.equal(model.merge_and_unload(seed)(images), merged)
    assert all(torch.equal(tensor, original[name]) for name, tensor in tensors(net).items())


class Counter(nn.Module):
    def __init__(self, restless: bool) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.restless = restless

    def forward(self, x: Tensor) -> Tensor:
        if self.restless or not self.seen:
            self.seen += 1
        return x * self.seen


@pytest.mark.parametrize("restless", [False, True])
def test_what_moves_in_eval_mode_is_refused(restless: bool, fresh: MakeModel, net: Any, images: Tensor) -> None:
    net.blocks[0].bn1 = Counter(restless)
    untouched = copy.deepcopy(net)
    if restless:
        with pytest.raises(UserError, match=r"'blocks\.0\.bn1\.seen' of Net changes whenever the network runs"):
            fresh("tr")
    else:
        fresh("tr")
    assert net.blocks[0].bn1.seen == 0
    assert torch.equal(net(images), untouched(images))
