"""The results of a campaign: its trials, gathered into points and ranked."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median, stdev
from typing import Any, Literal

FIRST_SETTINGS = ("format", "rank")  # named before the others, which follow by name
LEAST_POINTS = 5  # in a picture: the leaderboard shows fewer just as well


@dataclass(frozen=True)
class Trial:
    """One training of a campaign.

    Attributes:
        name: Name of the trial.
        status: running, finished, stopped (early), failed, or unreadable (its files are damaged).
        error: Why it failed, or what is damaged.
        format: Adapter format.
        point: The settings that the space gives the trial.
        random_seed: ``train.random_seed``.
        value: Last reported value of the campaign's metric; None if there is none, or it is not finite.
        test: The same metric on the test split.
        tasks: Task -> validation accuracy.
        parameters: Number of trained parameters.
        step_ms: Milliseconds per optimizer step, the median over the training.
    """

    name: str
    status: str
    error: str | None
    format: str
    point: Mapping[str, Any]
    random_seed: int
    value: float | None
    test: float | None
    tasks: Mapping[str, float]
    parameters: int | None
    step_ms: float | None


@dataclass(frozen=True)
class Point:
    """One choice of settings, with its trials: the repeats, each with another random seed."""

    trials: tuple[Trial, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the point."""
        return self.trials[0].point

    @property
    def format(self) -> str:
        """The adapter format."""
        return self.trials[0].format

    @cached_property
    def finished(self) -> tuple[Trial, ...]:
        """The trials that count: those that have finished with a value."""
        return tuple(trial for trial in self.trials if trial.status == "finished" and trial.value is not None)

    @property
    def score(self) -> float | None:
        """The mean value of the finished trials."""
        return _mean([trial.value for trial in self.finished])

    @property
    def spread(self) -> float | None:
        """The standard deviation of the finished trials' values."""
        values = [trial.value for trial in self.finished if trial.value is not None]
        return stdev(values) if len(values) > 1 else None

    @property
    def reached(self) -> float | None:
        """The score or, without one, the mean of the trials' last values, finished or not."""
        return _mean([trial.value for trial in self.finished or self.trials])

    @property
    def test(self) -> float | None:
        """The mean value of the finished trials on the test split."""
        return _mean([trial.test for trial in self.finished])

    @property
    def tasks(self) -> dict[str, float]:
        """Task -> mean accuracy of the finished trials."""
        names = sorted({task for trial in self.finished for task in trial.tasks})
        return {task: fmean(t.tasks[task] for t in self.finished if task in t.tasks) for task in names}

    @property
    def parameters(self) -> int | None:
        """The number of trained parameters."""
        return next((trial.parameters for trial in self.trials if trial.parameters is not None), None)

    @property
    def step_ms(self) -> float | None:
        """Milliseconds per optimizer step, the median over the trials."""
        known = [trial.step_ms for trial in self.trials if trial.step_ms is not None]
        return median(known) if known else None


@dataclass(frozen=True)
class Campaign:
    """A campaign and the present state of its trials.

    Attributes:
        name: Name of the campaign.
        search: Description of the search: space, searcher, scheduler, ...
        metric: The metric that ranks the points, such as ``val/knn10``.
        mode: Whether larger or smaller values of the metric are better.
        objectives: All metrics that are optimized, `metric` first.
        task_metric: The metric in `Trial.tasks`, such as ``val/knn10``.
        trials: The trials.
        images: Split -> domain -> number of images that the metrics are over; without what is not known.
        original: The metric of the backbone without adapters, on the test split; None if it is not known.
    """

    name: str
    search: Mapping[str, Any]
    metric: str
    mode: Literal["max", "min"]
    objectives: tuple[str, ...]
    task_metric: str
    trials: tuple[Trial, ...]
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    original: float | None = None

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """The points, best first; points without a finished trial come last, by `Point.reached`."""
        gathered: dict[str, list[Trial]] = {}
        for trial in self.trials:
            gathered.setdefault(str(sorted(trial.point.items())), []).append(trial)
        points = [Point(tuple(trials)) for trials in gathered.values()]
        return tuple(sorted(points, key=self._rank))

    @property
    def ranked(self) -> tuple[Point, ...]:
        """The points that have a finished trial, best first."""
        return tuple(point for point in self.points if point.score is not None)

    @property
    def best_of_formats(self) -> dict[str, Point]:
        """Format -> its best point, best first."""
        best: dict[str, Point] = {}
        for point in self.ranked:
            best.setdefault(point.format, point)
        return best

    @property
    def test_metric(self) -> str:
        """The metric on the test split; the metric itself if it is of no split."""
        return self.metric.replace("val/", "test/", 1) if self.metric.startswith("val/") else self.metric

    def count(self, metric: str) -> int | None:
        """Return over how many images a metric such as ``val/knn10`` or ``test/knn10/sketch`` is; None: not known."""
        split, _, rest = metric.partition("/")
        domain = rest.partition("/")[2]
        counts = self.images.get(split, {})
        return (counts.get(domain) if domain else sum(counts.values())) or None

    def error(self, point: Point) -> float | None:
        """Return the standard deviation of a point's repeats; of one training, the binomial error of its accuracy.

        That is sqrt(p (1 - p) / n) with the accuracy p over n images; None if neither is known.
        """
        images = self.count(self.metric) if is_accuracy(self.metric) else None
        if point.spread is not None or images is None or point.score is None or not 0 <= point.score <= 1:
            return point.spread
        return math.sqrt(point.score * (1 - point.score) / images)

    def front(self, cost: Literal["parameters", "step_ms"]) -> list[Point]:
        """Return the Pareto front, cheapest first: no other point is as good at less cost, or better at the same cost.

        Args:
            cost: The cost to trade against the score.
        """
        front: list[Point] = []
        known = [point for point in self.ranked if getattr(point, cost) is not None]  # best first, and stable
        for point in sorted(known, key=lambda point: getattr(point, cost)):
            if not front or self._rank(point) < self._rank(front[-1]):
                front.append(point)
        return front

    def _rank(self, point: Point) -> tuple[bool, bool, float]:
        value = point.reached
        signed = 0.0 if value is None else value if self.mode == "min" else -value
        return point.score is None, value is None, signed


def varied(points: Sequence[Point]) -> list[str]:
    """Return the settings that differ between the points, or that only some have; for a single point, all settings."""
    names = {name for point in points for name in point.settings}
    if len(points) > 1:
        names = {name for name in names if len({str(point.settings.get(name)) for point in points}) > 1}
    return sorted(names, key=lambda name: (name not in FIRST_SETTINGS, name != "format", name))


def describe(point: Point, names: Sequence[str]) -> str:
    """Return a point's format and settings in a few words: ``tr, rank 4, lr 0.006``."""
    parts = [f"{name} {text(point.settings[name])}" for name in names if name in point.settings and name != "format"]
    return ", ".join([point.format, *parts])


def text(value: Any) -> str:
    """Return a setting's value as text, a float with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def is_accuracy(metric: str) -> bool:
    """Tell whether a metric is an accuracy in [0, 1], which is shown in %."""
    return any(part in metric for part in ("knn", "accuracy", "linear"))


def metric_label(metric: str) -> str:
    """Return a metric's name in words, with its unit."""
    found = re.fullmatch(r"(val|test)/knn(\d+)(_weighted)?(?:/(.+))?", metric)
    if found:
        split, k, weighted, task = found.groups()
        words = {"val": "validation", "test": "test"}[split]
        extra = f"{', weighted vote' if weighted else ''}{f', {task}' if task else ''}"
        return f"{words} k-NN accuracy, K = {k}{extra} (%)"
    return f"{metric} (%)" if is_accuracy(metric) else metric


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
