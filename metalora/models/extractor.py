"""The frozen feature extractor, from whose features the mapping net makes the seeds."""

import functools
import inspect
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.factors import ADAPTABLE
from metalora.errors import UserError
from metalora.models.plain import described

FEATURES = ("pooled", "stats", "both")
STATS_LAYERS = 4


class _EnoughError(Exception):
    """Ends a forward whose remaining layers are not needed."""


class _Running(threading.local):
    """The statistics that a thread's call of an extractor has found so far, by layer; None outside of calls."""

    found: dict[str, Tensor] | None = None
    batch = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _Running, ()


class Extractor(nn.Module):
    """Maps images (B, 3, H, W) to features (B, F), in eval mode, without gradients or autocast.

    There is no autocast since the features are standardised later, which magnifies the rounding of a lower precision.

    Args:
        network: The network, which is the extractor's own from now on: it is put in eval mode, and the layers that
            ``stats`` reads get hooks. Its ``features`` method is called if it has one, else the network itself.
        features: ``pooled``: the network's output, averaged over positions if it has any. ``stats``: mean and standard
            deviation of each channel over the positions, at a few early layers, as cues of colour and texture; the
            rest of the network is not run. ``both``: pooled and stats side by side.
        layers: The layers that ``stats`` reads; default: `early_layers` of the network.
    """

    def __init__(self, network: nn.Module, features: str = "pooled", layers: Sequence[str] | None = None) -> None:
        super().__init__()
        self.network = network.eval()
        self.features = features
        self._early = () if features == "pooled" else tuple(layers or early_layers(network))
        self._running = _Running()  # hooks belong to the layers, and so to all threads
        enough = len(self._early) if features == "stats" else None
        for name in self._early:
            network.get_submodule(name).register_forward_hook(
                functools.partial(_look, name=name, running=self._running, enough=enough)
            )

    def train(self, mode: bool = True) -> "Extractor":
        """Stay in eval mode: the features depend on the image alone."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Extract the features of images. See the class."""
        dtype = next(self.network.parameters(), x).dtype if x.is_floating_point() else x.dtype
        x = x.to(dtype, copy=True)  # the network may write to it
        statistics: dict[str, Tensor] = {}
        pooled: list[Tensor] = []
        self._running.found, self._running.batch = statistics, x.shape[0]
        try:
            with torch.autocast(x.device.type, enabled=False), suppress(_EnoughError):
                pooled = [_pool(self._features(x))]
        finally:
            self._running.found = None
        return torch.cat([statistics[name] for name in self._early] + pooled, dim=1)

    def _features(self, x: Tensor) -> Any:
        method = getattr(self.network, "features", None)  # in torchvision's networks it is a part of them
        return method(x) if inspect.ismethod(method) else self.network(x)


def _look(layer: nn.Module, inputs: Any, output: Tensor, *, name: str, running: _Running, enough: int | None) -> None:
    """Note a layer's statistics, and end the call if they are the last that it needs."""
    if running.found is None:
        return
    running.found[name] = _statistics(output, running.batch, isinstance(layer, nn.Linear))
    if len(running.found) == enough:
        raise _EnoughError


def _statistics(output: Tensor, batch: int, channels_last: bool) -> Tensor:
    channels = output.shape[-1] if channels_last else output.shape[1]
    rows = output.movedim(-1 if channels_last else 1, -1).reshape(batch, -1, channels).float()
    return torch.cat([rows.mean(1), rows.std(1, correction=0)], dim=1)


def _pool(output: Any) -> Tensor:
    """(B, C) as it is, (B, C, H, W) averaged over positions; any other tensor flattened."""
    if not isinstance(output, Tensor):
        raise UserError(f"an extractor of pooled features must return a tensor, got {described(output)}")
    return output.mean((2, 3)) if output.dim() == 4 else output.flatten(1)


def early_layers(network: nn.Module, usable: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the names of up to four layers, spread over the first quarter of the convolutions and linear layers.

    Args:
        network: The network.
        usable: Layers to choose from (those that `probe` finds to have rows for each image); default: all.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, ADAPTABLE)]
    layers = [name for name in layers if usable is None or name in usable]
    quarter = layers[: max(1, len(layers) // 4)]
    count = min(STATS_LAYERS, len(quarter))
    return tuple(quarter[round(i * (len(quarter) - 1) / max(1, count - 1))] for i in range(count))
