"""Which weights are tested and kept, and when a training ends early: decided by a metric of the validations."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NotRequired

from pydantic import NonNegativeInt
from typing_extensions import TypedDict

from metalora.config import Config
from metalora.data.table import Table
from metalora.errors import UserError
from metalora.registry import nearest


class Selected(TypedDict):
    """The state of a `Selection` in a checkpoint.

    Attributes:
        value: The best value so far.
        epoch: Number of its epoch, from 1.
        waited: Validations since then.
        metrics: All metrics of that validation.
        state: The learner's state at that validation, if it is to be kept.
    """

    value: float
    epoch: NonNegativeInt
    waited: NonNegativeInt
    metrics: dict[str, float]
    state: NotRequired[dict[str, Any]]


class Selection:
    """Watches a metric of the validations: keeps the state of the best one, and tells when no better one is expected.

    Args:
        config: The settings ``keep``, ``monitor`` and ``patience``.
    """

    def __init__(self, config: Config) -> None:
        self.monitor = monitor_of(config)
        self.keep_best = config.train.keep == "best"
        self.patience = config.train.patience
        self.selected: Selected | None = None

    @property
    def active(self) -> bool:
        """Whether validations decide anything."""
        return self.keep_best or self.patience is not None

    @property
    def over(self) -> bool:
        """Whether so many validations in a row were no better that the training ends."""
        return self.patience is not None and self.selected is not None and self.selected["waited"] >= self.patience

    def see(self, epoch: int, metrics: Mapping[str, float], state: Callable[[], dict[str, Any]]) -> None:
        """Take a validation into account; equal on all ranks.

        Args:
            epoch: Number of its epoch, from 1.
            metrics: All its metrics.
            state: Returns the learner's state.
        """
        value = metrics[self.monitor]
        if self.selected is not None and not _better(value, self.selected["value"], self.monitor):
            self.selected["waited"] += 1
            return
        self.selected = {"value": value, "epoch": epoch, "waited": 0, "metrics": dict(metrics)}
        if self.keep_best:
            self.selected["state"] = copy.deepcopy(state())

    def result(self) -> dict[str, float]:
        """Return the metrics that tell of the best validation: all of its own, if its weights are kept."""
        if self.selected is None:
            return {}
        found = {"best/epoch": float(self.selected["epoch"]), f"best/{self.monitor}": self.selected["value"]}
        if self.over:
            found["best/waited"] = float(self.selected["waited"])
        if self.keep_best:
            found |= {**self.selected["metrics"], "best/kept": 1.0}
        return found


def monitor_of(config: Config) -> str:
    """Return the metric that the validations of a training are judged by."""
    return config.train.monitor or f"val/knn{max(config.evaluate.knn)}"


def check_selection(config: Config, table: Table) -> None:
    """Check that the validations of a training will have the metric that decides.

    Raises:
        UserError: there are no validation images, or no such metric.
    """
    selection = Selection(config)
    asked = "--keep best" if selection.keep_best else "--patience"
    if selection.active and not len(table.rows("val")):
        raise UserError(f"{asked} needs validation images, and the data have none in the split val (--val-fraction)")
    overall, by_domain = validation_metrics(config, table)
    if selection.monitor not in overall + by_domain:
        raise UserError(
            f"--monitor {selection.monitor!r} is no metric of the validations"
            f"{nearest(selection.monitor, overall + by_domain)} (there are: {', '.join(overall)}, and by domain)"
        )


def validation_metrics(config: Config, table: Table) -> tuple[list[str], list[str]]:
    """Return the names of all metrics that a validation has: the overall ones, and those by domain."""
    knn = [f"val/knn{k}{vote}" for k in config.evaluate.knn for vote in ("", "_weighted")]
    domains = [domain for domain in table.domains if domain not in table.holdout]
    return ["val/loss", "val/accuracy", *knn], [f"{name}/{domain}" for name in knn for domain in domains]


def _better(value: float, best: float, monitor: str) -> bool:
    """Tell whether a value is better than the best one so far; losses are better if lower, a NaN never is."""
    if math.isnan(best):
        return not math.isnan(value)
    return value < best if monitor.endswith("/loss") else value > best
