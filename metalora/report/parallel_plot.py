"""Parallel coordinates: each point of a campaign is a line over its settings that ends at its score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metalora.report.campaign import LEAST_POINTS, Campaign, Point, is_accuracy, metric_label, text, varied
from metalora.report.drawing import drawn, shown

ABSENT = "none"
MAX_TICKS = 8


@dataclass(frozen=True)
class Scale:
    """An axis: the place in [0, 1] where each point's line crosses it, and its ticks."""

    name: str
    heights: Sequence[float]
    ticks: Sequence[tuple[float, str]]


def plot_parallel(campaign: Campaign, path: Path) -> bool:
    """Draw the points as lines over the settings that vary; darker lines have better scores.

    Args:
        campaign: The campaign.
        path: The PNG file.

    Returns:
        Whether there was anything to draw: at least `LEAST_POINTS` points, and a setting that varies.
    """
    import matplotlib

    points = campaign.ranked[::-1]  # the best are drawn last, on top
    names = varied(points)
    if len(points) < LEAST_POINTS or not names:
        return False
    scales = [*(_setting(name, points) for name in names), _score(campaign, points)]
    with drawn(path, max(7.0, 2.1 * len(scales)), 5.4) as figure:
        axes = figure.subplots()
        _, places = np.unique([point.score for point in points], return_inverse=True)  # equal scores, equal shades
        goodness = places if campaign.mode == "max" else places.max() - places
        goodness = 0.92 * goodness / max(1, goodness.max())  # the end of the map is too pale on white
        for row, shade in enumerate(goodness):
            colour = matplotlib.colormaps["viridis"](0.92 - shade)
            heights = [scale.heights[row] for scale in scales]
            axes.plot(heights, color=colour, alpha=0.85, linewidth=3 if row == len(points) - 1 else 1.4)
        for place, scale in enumerate(scales):
            axes.axvline(place, color="0.3", linewidth=1, zorder=0)
            for height, label in scale.ticks:
                axes.annotate(
                    label, (place, height), (5, 0), textcoords="offset points", va="center", fontsize=9.5,
                    bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
                )  # fmt: skip
        axes.set_xticks(range(len(scales)), [scale.name for scale in scales], fontsize=10.5)
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(scales) - 0.6)
        axes.set_ylim(-0.06, 1.06)
        axes.spines[:].set_visible(False)
        axes.set_title("each line is a point; darker lines have better scores, the first is thick", fontsize=10.5)
    return True


def _setting(name: str, points: Sequence[Point]) -> Scale:
    values = [point.settings.get(name, ABSENT) for point in points]
    if all(isinstance(value, float) for value in values) and len(set(values)) > MAX_TICKS:
        return _continuous(name, values, logarithmic=min(values) > 0 and max(values) > 4 * min(values))
    numbers = {str(value): value for value in values if isinstance(value, int | float)}
    words = {str(value): value for value in values if str(value) not in numbers}
    distinct = [*(words[key] for key in sorted(words)), *sorted(numbers.values())]
    places = {str(value): (i + 0.5) / len(distinct) for i, value in enumerate(distinct)}
    ticks = [(places[str(value)], shown(text(value))) for value in distinct]
    return Scale(name, [places[str(value)] for value in values], ticks)


def _score(campaign: Campaign, points: Sequence[Point]) -> Scale:
    factor = 100 if is_accuracy(campaign.metric) else 1
    scores = [factor * point.score for point in points if point.score is not None]
    label = metric_label(campaign.metric).replace(", ", "\n")
    return _continuous(label, scores, logarithmic=False)


def _continuous(name: str, values: Sequence[float], logarithmic: bool) -> Scale:
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    if logarithmic:
        marks = [
            m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high))) for m in (1, 2, 5)
        ]
    else:
        marks = [float(mark) for mark in MaxNLocator(6).tick_values(low, high)]

    def height(value: float) -> float:
        ends: Any = (math.log(low), math.log(high), math.log(value)) if logarithmic else (low, high, value)
        return (ends[2] - ends[0]) / (ends[1] - ends[0]) if high > low else 0.5

    ticks = [(height(mark), text(mark)) for mark in marks if low <= mark <= high]
    return Scale(name, [height(value) for value in values], ticks)
