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
        """Return the metrics that tell of the best validation, if its weights are kept."""
        if self.selected is None or not self.keep_best:
            return {}
        return {**self.selected["metrics"], "best/epoch": float(self.selected["epoch"])}


def monitor_of(config: Config) -> str:
    """Return the metric that the validations of a training are judged by."""
    return config.train.monitor or f"val/knn{max(config.evaluate.knn)}"


def check_selection(config: Config, table: Table) -> None:
    """Check that the validations of a training will have the metric that decides.

    Raises:
        UserError: there are no validation images, or no such metric.
    """
    selection = Selection(config)
    if not selection.active:
        return
    asked = "--keep best" if selection.keep_best else "--patience"
    if not len(table.rows("val")):
        raise UserError(f"{asked} needs validation images, and the data have none in the split val (--val-fraction)")
    known = ["val/loss", "val/accuracy"]
    for k in config.evaluate.knn:
        votes = [f"val/knn{k}", f"val/knn{k}_weighted"]
        domains = {table.domains[d] for d in table.domain[table.rows("val")]}
        known += votes + [f"{vote}/{domain}" for vote in votes for domain in sorted(domains)]
    if selection.monitor not in known:
        shown = ", ".join(name for name in known if name.count("/") == 1)
        raise UserError(
            f"--monitor {selection.monitor!r} is no metric of the validations{nearest(selection.monitor, known)} "
            f"(there are: {shown}, and k-NN's of each domain, such as val/knn{max(config.evaluate.knn)}/DOMAIN)"
        )


def _better(value: float, best: float, monitor: str) -> bool:
    """Tell whether a value is better than the best one so far; losses are better if lower, a NaN never is."""
    if math.isnan(best):
        return not math.isnan(value)
    return value < best if monitor.endswith("/loss") else value > best
