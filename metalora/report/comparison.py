"""The table and the picture of methods compared over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metalora.files import atomic_file

ORIGINAL = "original"


@dataclass(frozen=True)
class Tuning:
    """How a method's learning rate was chosen.

    Attributes:
        lr: The best.
        at_the_end: Whether it is at an end of the range, so that a wider range might have been better.
        curve: Validation accuracy by learning rate.
    """

    lr: float
    at_the_end: bool
    curve: Mapping[float, float]


@dataclass(frozen=True)
class Results:
    """What methods scored on one backbone; accuracies are in [0, 1].

    Attributes:
        backbone: Its name.
        seeds: Number of seeds n.
        parameters: Trained parameters by method; 0 for the original.
        tuning: By method.
        scores: Metric -> method -> n accuracies.
        estimates: Metric -> method -> mean and ends of its 95 % interval, the best method first.
        sentences: Metric -> which differences are real.
    """

    backbone: str
    seeds: int
    parameters: Mapping[str, int]
    tuning: Mapping[str, Tuning]
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    estimates: Mapping[str, Mapping[str, tuple[float, float, float]]]
    sentences: Mapping[str, str]


def comparison_markdown(results: Sequence[Results], picture: str) -> str:
    """Return the table, a part for each backbone, with what the tests say and how the methods were tuned."""
    parts = [_part(one) for one in results]
    return "\n\n".join([*parts, f"![Accuracy by method]({picture})"]) + "\n"


def _part(results: Results) -> str:
    metrics = list(results.scores)
    lines = [
        f"### {results.backbone}",
        "",
        f"Accuracy in %, mean of {results.seeds} seeds and the half width of its 95 % interval.",
        "",
        f"| method | trained parameters | {' | '.join(metrics)} |",
        f"| --- | ---: | {' | '.join('---:' for _ in metrics)} |",
    ]
    for method, count in results.parameters.items():
        cells = [_cell(results, metric, method) for metric in metrics]
        lines.append(f"| {method} | {count:,} | {' | '.join(cells)} |")
    lines += ["", *(f"- {metric}: {text}" for metric, text in results.sentences.items()), "", _tuned(results)]
    return "\n".join(lines)


def _cell(results: Results, metric: str, method: str) -> str:
    mean, low, high = results.estimates[metric][method]
    text = f"{100 * mean:.1f}" if high == low else f"{100 * mean:.1f} ± {50 * (high - low):.1f}"
    return f"**{text}**" if method == next(iter(results.estimates[metric])) else text


def _tuned(results: Results) -> str:
    rates = [f"{method} {tuning.lr:g}" for method, tuning in results.tuning.items()]
    tried = next(iter(results.tuning.values())).curve
    text = (
        f"Every method was tuned over the same {len(tried)} learning rates, {min(tried):g} to {max(tried):g}, "
        f"on the validation split; the best: {', '.join(rates)}."
    )
    ends = [method for method, tuning in results.tuning.items() if tuning.at_the_end]
    return f"{text} At an end of the range, so perhaps not tuned out: {', '.join(ends)}." if ends else text


def plot_comparison(results: Sequence[Results], path: Path) -> None:
    """Draw every metric's accuracies: a dot a seed, the mean and its 95 % interval; a row for each backbone."""
    from matplotlib.figure import Figure

    columns = max(len(one.scores) for one in results)
    height = 1.1 + 0.42 * max(len(one.parameters) for one in results)
    figure = Figure(figsize=(max(6, 2.9 * columns), height * len(results)), layout="constrained")
    rows = figure.subplots(len(results), columns, squeeze=False, sharey="row")
    for one, axes_row in zip(results, rows, strict=True):
        methods = list(one.parameters)
        for axes in axes_row[len(one.scores) :]:
            axes.set_visible(False)
        for axes, (metric, scores) in zip(axes_row, one.scores.items(), strict=False):
            for place, method in enumerate(methods):
                mean, low, high = (100 * value for value in one.estimates[metric][method])
                colour = "0.45" if method == ORIGINAL else "#0072b2"
                axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.45, solid_capstyle="butt")
                axes.plot([100 * s for s in scores[method]], [place] * len(scores[method]), "o", ms=3.5,
                          color=colour, alpha=0.6, mew=0)  # fmt: skip
                axes.plot([mean], [place], "|", ms=15, mew=2.5, color=colour)
            title, _, measure = metric.rpartition(": ")
            axes.set_title(f"{title}\n{measure}" if title else measure, fontsize=10)
            axes.set_yticks(range(len(methods)), methods)
            axes.set_ylim(len(methods) - 0.5, -0.5)
            axes.set_xlabel("accuracy in %")
            axes.grid(axis="x", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        axes_row[0].set_ylabel(one.backbone)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
