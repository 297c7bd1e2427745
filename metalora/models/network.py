"""The adapted network, the part of a model that DDP wraps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.fused import fuse
from metalora.adapters.seed_slot import SeedSlot
from metalora.models.mapping import MappingNet, mean_by_task


class AdaptedNetwork(nn.Module):
    """A backbone with adapters, and the mapping net that feeds them.

    Args:
        backbone: The network with its `AdaptedLayer`s and with the modules that are trained in full.
        mapping: The mapping net; None for formats without generated seeds.
        slot: The seed slot that the layers read.
        saved: The modules of the backbone that are trained in full (PEFT's ``modules_to_save``), by name.
        original: The network that runs while the adapters are off, with the same frozen tensors; None if no module is
            trained in full: then it is the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mapping: MappingNet | None,
        slot: SeedSlot,
        saved: Mapping[str, nn.Module],
        original: nn.Module | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.mapping = mapping
        self.slot = slot
        self.saved = dict(saved)
        self.original = original
        self._fused: tuple[nn.Module, ...] = ()  # not registered: its parameters are the backbone's

    def fuse(self, input_size: tuple[int, ...], dtype: torch.dtype | None = None) -> int:
        """Train with fused convolutions from now on, as far as the backbone allows; see `metalora.adapters.fused`.

        Call this when the network is on its device and in train mode. Each forward must be followed by its backward
        before the next forward, and gradients have no gradients. Merging ends it.

        Args:
            input_size: (3, H, W) of an image.
            dtype: The type that the fused convolutions compute in; None: the network's own.

        Returns:
            The number of fused convolutions.
        """
        graph, count = fuse(self.backbone, input_size, dtype)
        self._fused = () if graph is None else (graph,)
        return count

    def unfuse(self) -> None:
        """Train without fused convolutions from now on; the opposite of `fuse`."""
        self._fused = ()

    def train(self, mode: bool = True) -> "AdaptedNetwork":
        """Set the mode of the trained parts: the mapping net, and the modules trained in full.

        All frozen modules stay in eval mode, whatever their class. Batch norms and other modules with statistics keep
        these, and dropout and stochastic depth of the backbone are off.
        """
        super().train(False)
        self.training = mode
        for module in (self.mapping, *self.saved.values()):
            if module is not None:
                module.train(mode)
        return self

    def forward(self, x: Tensor, condition: Tensor | None = None, task: Tensor | None = None) -> Any:
        """Compute the backbone's output for images (B, 3, H, W) and extractor features (B, F).

        Without extractor features the seeds in the slot are used (`SeedSlot.given`). With ``task`` (B,) all images of a
        task get the mean of their seeds.
        """
        enabled, seeds = self.slot.enabled, self.slot.seeds
        if self.mapping is not None and enabled and condition is not None:
            seeds = self.mapping(condition)
            seeds = seeds if task is None else mean_by_task(seeds, task)
        network = self.backbone
        if self.original is not None and not enabled:
            network = self.original
        elif self._fused and self.training and enabled:
            network = self._fused[0]
        with self.slot.given(seeds, learns=self.training and torch.is_grad_enabled()):
            output = network(x)
            self.slot.remember(output)
        return output
