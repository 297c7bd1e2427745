"""A network small enough to be adapted some hundred times a second, with an extractor's early layers and a norm."""

import torch
from torch import Tensor, nn

import metalora

LABELS = ("circle", "cross", "square")
MODES = ("lora", "multi_lora", "cp", "tr")


class Tiny(nn.Module):
    """Images (B, 3, 8, 8) to features (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(self.norm(self.stem(x)).relu())
        return self.last(hidden.relu().mean((2, 3)))


def tiny_backbone() -> Tiny:
    """Return a `Tiny` with weights that follow from a seed."""
    torch.manual_seed(0)
    return Tiny().eval().requires_grad_(False)


def tiny_images() -> Tensor:
    """Return images (2, 3, 8, 8)."""
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def tiny_model(backbone: nn.Module, format: str) -> metalora.MetaLoRAModel:
    """Adapt a backbone such that every tensor of the adapter matters."""
    model = metalora.adapt(
        backbone,
        format,
        rank=2,
        labels=LABELS,
        target_modules=["conv", "last"],
        modules_to_save=["norm"],
        mapping_width=4,
    )
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model
