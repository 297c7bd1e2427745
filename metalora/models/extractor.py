"""The frozen feature extractor that looks at the image before the mapping net does."""

import inspect
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.layer import ADAPTABLE

FEATURES = ("pooled", "stats", "both")
STATS_LAYERS = 4


class _EnoughError(Exception):
    """Ends a forward whose remaining layers are not needed."""


class Extractor(nn.Module):
    """Features (B, F) of images (B, 3, H, W), in eval mode, without gradients or autocast.

    Standardising magnifies what distinguishes images, and with it the rounding of a lower precision.

    Args:
        network: The network; its ``features`` method is called if it has one, else itself.
        features: ``pooled``: the network's output (averaged over positions, if it has any). ``stats``: mean and
            standard deviation of each channel over the positions, at a few early layers: cues of colour and
            texture; the rest of the network is not run. ``both``: side by side.
        layers: The layers that ``stats`` looks at; default: `early_layers` of all.
    """

    def __init__(self, network: nn.Module, features: str = "pooled", layers: Sequence[str] | None = None) -> None:
        super().__init__()
        self.network = network.eval()
        self.features = features
        self._early = () if features == "pooled" else tuple(layers or early_layers(network))

    def train(self, mode: bool = True) -> "Extractor":
        """Stay in eval mode: the features depend on the image alone."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Extract features. See the class."""
        statistics: dict[str, Tensor] = {}
        output = None
        x = x.to(next(self.network.parameters(), x).dtype)
        with ExitStack() as hooks:
            hooks.enter_context(torch.autocast(x.device.type, enabled=False))
            for name in self._early:
                layer = self.network.get_submodule(name)
                hook = self._collector(name, x.shape[0], statistics)
                hooks.callback(layer.register_forward_hook(hook).remove)
            hooks.enter_context(suppress(_EnoughError))
            output = self._features(x)
        pooled = [_pool(output)] if output is not None else []
        return torch.cat([statistics[name] for name in self._early] + pooled, dim=1)

    def _features(self, x: Tensor) -> Tensor:
        method = getattr(self.network, "features", None)  # in torchvision's networks it is a part of them
        output: Tensor = method(x) if inspect.ismethod(method) else self.network(x)
        return output

    def _collector(self, name: str, batch: int, statistics: dict[str, Tensor]) -> Any:
        def collect(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            statistics[name] = _statistics(output, batch, isinstance(layer, nn.Linear))
            if self.features == "stats" and len(statistics) == len(self._early):
                raise _EnoughError

        return collect


def _statistics(output: Tensor, batch: int, channels_last: bool) -> Tensor:
    channels = output.shape[-1] if channels_last else output.shape[1]
    rows = output.movedim(-1 if channels_last else 1, -1).reshape(batch, -1, channels).float()
    return torch.cat([rows.mean(1), rows.std(1, correction=0)], dim=1)


def _pool(output: Tensor) -> Tensor:
    """(B, C) as it is, (B, C, H, W) averaged over positions; anything else flattened."""
    return output.mean((2, 3)) if output.dim() == 4 else output.flatten(1)


def early_layers(network: nn.Module, usable: Collection[str] | None = None) -> tuple[str, ...]:
    """Return up to four layers, spread over the first quarter of the convolutions and linear layers.

    Args:
        network: The network.
        usable: Layers to choose from (those with rows for each image, as `probe` finds them); default: all.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, ADAPTABLE)]
    layers = [name for name in layers if usable is None or name in usable]
    quarter = layers[: max(1, len(layers) // 4)]
    count = min(STATS_LAYERS, len(quarter))
    return tuple(quarter[round(i * (len(quarter) - 1) / max(1, count - 1))] for i in range(count))
