"""A small network with a bit of everything, and models of it with random adapters."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metalora

SIZE = (3, 16, 16)

MakeModel = Callable[..., metalora.MetaLoRAModel]


class Block(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.bn1(self.conv1(x)).relu())


class Net(nn.Module):
    """Convolutions (one grouped), a batch norm with statistics of its own, linear layers in 3D and 2D."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(8, 1), Block(8, 2))
        self.norm = nn.BatchNorm1d(8)
        self.tokens = nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 6))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.stem(x))
        h = self.tokens(h.flatten(2).transpose(1, 2)).relu().mean(1)
        return self.mlp(self.norm(h))


TARGETS = ("blocks.*.conv?", "tokens", "mlp.?")


def liven(model: metalora.MetaLoRAModel, scale: float = 0.3) -> metalora.MetaLoRAModel:
    """Make the adapter do something: random factors, gains and seed heads."""
    with torch.no_grad():
        for layer in model.layers.values():
            for name, parameter in layer.adapter_parameters():
                if name != "down.weight":
                    parameter.add_(torch.randn_like(parameter), alpha=scale)
        if model.network.mapping is not None:
            like = next(model.parameters())
            looks = torch.randn(64, *SIZE, device=like.device, dtype=like.dtype)
            model.network.mapping.standardize(model.extractor(looks))
            nn.init.normal_(model.network.mapping.heads.weight)
    return model


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    # Frozen, since torch picks other kernels, which round otherwise, for weights that want gradients.
    return Net().eval().requires_grad_(False)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def fresh(net: nn.Module) -> MakeModel:
    """Adapt the network; the adapter is fresh."""

    def make(format: str = "tr", rank: int = 2, **settings: Any) -> metalora.MetaLoRAModel:
        defaults: dict[str, Any] = {"input_size": SIZE, "target_modules": TARGETS, "mapping_width": 8}
        return metalora.adapt(settings.pop("backbone", net), format, rank, **{**defaults, **settings}).eval()

    return make


@pytest.fixture
def lively(fresh: MakeModel) -> MakeModel:
    """Adapt the network; the adapter changes the output, for each image in its own way."""
    return lambda *arguments, **settings: liven(fresh(*arguments, **settings))


@pytest.fixture
def gloo(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
