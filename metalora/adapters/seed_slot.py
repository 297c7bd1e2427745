"""How a model's seeds reach its adapted layers."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor


class SeedSlot:
    """One a model, shared by its adapted layers: an arbitrary backbone's forward takes no second argument.

    The seeds stay until the next forward sets others, so that activation checkpointing recomputes with
    the seeds of the forward. Copies and pickles start empty: seeds belong to a batch, not to a model.

    Args:
        slices: The parts that layers ask for: together they cover the seeds, and none overlaps another.

    Attributes:
        seeds: (B, S), the seeds of all layers side by side; None before the first forward. Set by `fill`.
        enabled: False while the adapters are switched off.
    """

    def __init__(self, slices: Iterable[slice] = ()) -> None:
        self.bounds = sorted({(one.start, one.stop) for one in slices})
        self.enabled = True
        self.fill(None)

    def fill(self, seeds: Tensor | None) -> None:
        """Set the seeds of all layers, (B, S), or none."""
        self.seeds = seeds
        # split once: the gradients of as many slices would be as many zeroed tensors of all seeds, and their sums
        parts = () if seeds is None else seeds.split([stop - start for start, stop in self.bounds], dim=1)
        self._parts = dict(zip(self.bounds, parts, strict=False))

    def part(self, where: slice) -> Tensor:
        """Return one of the slices, (B, its size).

        Raises:
            RuntimeError: there are no seeds.
        """
        if self.seeds is None:
            raise RuntimeError("no seed: call the model, not its backbone, so that its mapping net makes one")
        part: Tensor = self._parts[where.start, where.stop]
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {"bounds": self.bounds, "enabled": self.enabled, "seeds": None, "_parts": {}}
