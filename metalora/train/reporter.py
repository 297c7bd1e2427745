"""What the training loop tells the world, without knowing who listens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Progress:
    """Where the training is.

    Attributes:
        phase: What is being done ("train", "validate", ...).
        step: Optimizer steps done, or items of another phase.
        total: Of how many.
        epoch: From 1; 0 outside training.
        epochs: Of how many.
        loss: Mean training loss since the last report; None outside training.
        rate: Images per second, over all workers.
    """

    phase: str
    step: int
    total: int
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    rate: float | None = None


class Reporter(Protocol):
    """Listens to a training. All but `checkpoint` is called on rank 0 only."""

    def progress(self, progress: Progress) -> None:
        """Take note of the progress; called often, so it must be cheap."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics of an optimizer step, under DESIGN's MLflow names."""

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Keep a checkpoint; called on every rank.

        Args:
            step: Optimizer steps done.
            write: Fills an empty folder, on rank 0; None on the others. If it raises, or the process dies
                meanwhile, the last checkpoint must stay.
        """


class SilentReporter:
    """A reporter that listens to nothing: for what is only checked or measured."""

    def progress(self, progress: Progress) -> None:
        """Let it pass."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Let them pass."""

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Keep nothing."""
