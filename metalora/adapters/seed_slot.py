"""How a model's seeds reach its adapted layers."""

from typing import Any

from torch import Tensor


class SeedSlot:
    """One a model, shared by its adapted layers: an arbitrary backbone's forward takes no second argument.

    The seeds stay until the next forward sets others, so that activation checkpointing recomputes with
    the seeds of the forward. Copies and pickles start empty: seeds belong to a batch, not to a model.

    Attributes:
        seeds: (B, S), the seeds of all layers side by side; None before the first forward.
        enabled: False while the adapters are switched off.
    """

    def __init__(self) -> None:
        self.seeds: Tensor | None = None
        self.enabled = True

    def __getstate__(self) -> dict[str, Any]:
        return {"seeds": None, "enabled": self.enabled}
