"""The interface by which the training loop reports, whoever listens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Progress:
    """The progress of a training.

    Attributes:
        phase: The present phase ("train", "validate", ...).
        step: Optimizer steps done, or items done in another phase.
        total: Number of all steps or items of the phase.
        epoch: Number of the epoch, from 1; 0 outside training.
        epochs: Number of all epochs.
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
    """Listens to a training. All methods except `checkpoint` are called on rank 0 only."""

    def progress(self, progress: Progress) -> None:
        """Report the progress; called often, so it must be cheap."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Report metrics of an optimizer step, by their MLflow names."""

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Keep a checkpoint; called on every rank.

        Args:
            step: Optimizer steps done.
            write: Fills an empty folder, on rank 0; None on the others. If it raises, or the process dies
                meanwhile, the last checkpoint must stay.
        """


class SilentReporter:
    """A reporter that ignores everything, for trainings that are only checked or measured."""

    def progress(self, progress: Progress) -> None:
        """Ignore the progress."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore the metrics."""

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Keep no checkpoint."""
