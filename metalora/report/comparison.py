"""The table and the plot of methods compared over repeats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from metalora.report.drawing import drawn

ORIGINAL = "original"


@dataclass(frozen=True)
class Tuning:
    """The tuning of a method's learning rate.

    Attributes:
        lr: The best learning rate.
        at_the_end: Whether it is at an end of the range, so that a wider range might give a better one.
        curve: Validation accuracy by learning rate.
    """

    lr: float
    at_the_end: bool
    curve: Mapping[float, float]


@dataclass(frozen=True)
class Results:
    """The results of methods on one backbone; accuracies are in [0, 1].

    Attributes:
        backbone: Name of the backbone.
        repeats: Number of repeats n.
        parameters: Number of trained parameters by method; 0 for the original.
        tuning: Tuning of the learning rate by method.
        scores: Metric -> method -> n accuracies. A metric is named GROUP: MEASURE; metrics of one group are adjacent.
        estimates: Metric -> method -> mean and ends of its 95 % interval, the best method first.
        controls: Estimates of controls, which are no methods, such as a method with shuffled seeds.
        sentences: Metric -> a sentence on which differences are real.
    """

    backbone: str
    repeats: int
    parameters: Mapping[str, int]
    tuning: Mapping[str, Tuning]
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    estimates: Mapping[str, Mapping[str, tuple[float, float, float]]]
    controls: Mapping[str, Mapping[str, tuple[float, float, float]]]
    sentences: Mapping[str, str]

    def groups(self) -> dict[str, list[str]]:
        """Return the metrics of each group."""
        return {group: list(metrics) for group, metrics in groupby(self.scores, lambda metric: metric.split(": ")[0])}


def comparison_markdown(results: Sequence[Results], picture: str) -> str:
    """Return the tables, one part per backbone, with the results of the tests and the tuning of the methods."""
    parts = [_part(one) for one in results]
    return "\n\n".join([*parts, f"![Accuracy by method]({picture})"]) + "\n"


def _part(results: Results) -> str:
    lines = [
        f"### {results.backbone}",
        "",
        f"Accuracy in %, mean of {results.repeats} repeats and the half width of its 95 % interval.",
    ]
    for group, metrics in results.groups().items():
        measures = [_measure(metric) for metric in metrics]
        lines += [
            "",
            f"| {group} | trained parameters | {' | '.join(measures)} |",
            f"| --- | ---: | {' | '.join('---:' for _ in metrics)} |",
        ]
        for method, count in results.parameters.items():
            lines.append(_row(method, f"{count:,}", [_cell(results, metric, method) for metric in metrics]))
        for control in results.controls.get(metrics[0], {}):
            lines.append(_row(control, "", [_percent(*results.controls[metric][control]) for metric in metrics]))
        lines += ["", *(f"- {_measure(metric)}: {results.sentences[metric]}" for metric in metrics)]
    return "\n".join([*lines, "", _tuned(results)])


def _measure(metric: str) -> str:
    return metric.rpartition(": ")[2]


def _row(name: str, count: str, cells: Sequence[str]) -> str:
    return f"| {name} | {count} | {' | '.join(cells)} |"


def _cell(results: Results, metric: str, method: str) -> str:
    text = _percent(*results.estimates[metric][method])
    return f"**{text}**" if method == next(iter(results.estimates[metric])) else text


def _percent(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f}" if high == low else f"{100 * mean:.1f} ± {50 * (high - low):.1f}"


def _tuned(results: Results) -> str:
    rates = [f"{method} {tuning.lr:g}" for method, tuning in results.tuning.items()]
    tried = next(iter(results.tuning.values())).curve
    text = (
        f"Every method was tuned over the same {len(tried)} learning rates, {min(tried):g} to {max(tried):g}, "
        f"on the validation split; the best: {', '.join(rates)}."
    )
    ends = [method for method, tuning in results.tuning.items() if tuning.at_the_end]
    return f"{text} At an end of the range, so a wider range might be better: {', '.join(ends)}." if ends else text


def plot_comparison(results: Sequence[Results], path: Path) -> None:
    """Draw every metric's accuracies: dots for repeats, mean and 95 % interval; one row per backbone and group."""
    rows = [(one, group, metrics) for one in results for group, metrics in one.groups().items()]
    columns = max(len(metrics) for _, _, metrics in rows)
    height = 1.1 + 0.3 * max(len(one.parameters) for one in results)
    with drawn(path, max(6, 3.4 * columns), height * len(rows), dpi=110) as figure:
        for (one, group, metrics), part in zip(rows, figure.subfigures(len(rows), 1, squeeze=False).flat, strict=True):
            part.suptitle(f"{one.backbone}: {group}", fontsize=10, x=0.01, ha="left")
            grid = part.subplots(1, columns, squeeze=False, sharey="row")[0]
            for axes in grid[len(metrics) :]:
                axes.set_visible(False)
            for axes, metric in zip(grid, metrics, strict=False):
                _draw_metric(axes, one, metric)


def _draw_metric(axes: Any, results: Results, metric: str) -> None:
    methods = list(results.parameters)
    for place, method in enumerate(methods):
        mean, low, high = (100 * value for value in results.estimates[metric][method])
        values = [100 * score for score in results.scores[metric][method]]
        colour = "0.45" if method == ORIGINAL else "#0072b2"
        axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.45, solid_capstyle="butt")
        axes.plot(values, [place] * len(values), "o", ms=3.5, color=colour, alpha=0.6, mew=0)
        axes.plot([mean], [place], "|", ms=13, mew=2.5, color=colour)
    axes.set_title(_measure(metric), fontsize=9)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlabel("accuracy in %", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
