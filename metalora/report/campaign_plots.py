"""Plots of a campaign. Colours are Okabe and Ito's, which colour-blind people can tell apart; markers differ too."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metalora.report.campaign import LEAST_POINTS, Campaign, Point, is_accuracy, metric_label
from metalora.report.drawing import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = tuple[str, str]  # colour, marker

STYLES: dict[str, Style] = {
    "lora": ("#0072B2", "o"), "multi_lora": ("#E69F00", "s"), "cp": ("#009E73", "^"), "tr": ("#D55E00", "D"),
}  # fmt: skip
MORE_STYLES: tuple[Style, ...] = (("#CC79A7", "v"), ("#56B4E9", "P"), ("#000000", "X"))
COSTS: dict[Literal["parameters", "step_ms"], str] = {
    "parameters": "trained parameters", "step_ms": "time of an optimizer step (ms)",
}  # fmt: skip


def plot_cost(campaign: Campaign, path: Path) -> bool:
    """Draw the score against trained parameters and against the time of a step, with the Pareto fronts.

    Args:
        campaign: The campaign.
        path: The PNG file.

    Returns:
        Whether there was anything to draw: at least `LEAST_POINTS` points, of different cost.
    """
    costs = {cost: {getattr(point, cost) for point in campaign.ranked} - {None} for cost in COSTS}
    known = [cost for cost, values in costs.items() if len(values) > 1]
    if not known or len(campaign.ranked) < LEAST_POINTS:
        return False
    with drawn(path, 6.5 * len(known), 5.4) as figure:
        panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
        for axes, cost in zip(panels, known, strict=True):
            points = [point for point in campaign.ranked if getattr(point, cost) is not None]
            for format, style in _styles(campaign).items():
                mine = [point for point in points if point.format == format]
                _markers(axes, campaign, [getattr(point, cost) for point in mine], mine, style, format)
            front = campaign.front(cost)
            axes.step([getattr(p, cost) for p in front], _heights(campaign, front), where="post", color="0.35",
                      linewidth=1.2, linestyle="--", zorder=1)  # fmt: skip
            axes.plot([getattr(p, cost) for p in front], _heights(campaign, front), linestyle="none", marker="o",
                      markersize=14, markerfacecolor="none", markeredgecolor="0.35", label="Pareto front")  # fmt: skip
            _scale(axes, [getattr(point, cost) for point in points])
            axes.set_xlabel(COSTS[cost])
            axes.grid(alpha=0.3)
        panels[0].set_ylabel(metric_label(campaign.metric))
        _legend(figure, panels)
    return True


def plot_ranks(campaign: Campaign, path: Path) -> bool:
    """Draw the score by rank: one line per format through the best point of each rank, all other points pale.

    Args:
        campaign: The campaign.
        path: The PNG file.

    Returns:
        Whether there was anything to draw: a format with at least two ranks.
    """
    points = [point for point in campaign.ranked if isinstance(point.settings.get("rank"), int)]
    ranks = sorted({point.settings["rank"] for point in points})
    if len({(point.format, point.settings["rank"]) for point in points}) == len({point.format for point in points}):
        return False
    with drawn(path, 8, 5.4) as figure:
        axes = figure.subplots()
        for format, (colour, marker) in _styles(campaign).items():
            mine = [point for point in points if point.format == format]
            if not mine:
                continue
            best: dict[int, Point] = {}
            for point in mine:  # best first
                best.setdefault(point.settings["rank"], point)
            line = [best[rank] for rank in sorted(best)]
            axes.plot([p.settings["rank"] for p in mine], _heights(campaign, mine), linestyle="none", marker=marker,
                      color=colour, alpha=0.3, markeredgewidth=0, markersize=7)  # fmt: skip
            axes.errorbar(sorted(best), _heights(campaign, line), yerr=_errors(campaign, line), marker=marker,
                          color=colour, markersize=8, linewidth=2, elinewidth=1, capsize=3, label=format)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.minorticks_off()
        axes.set_xlabel("rank")
        axes.set_ylabel(metric_label(campaign.metric))
        axes.grid(alpha=0.3)
        _legend(figure, [axes])
    return True


def plot_importances(shares: Mapping[str, float], path: Path) -> bool:
    """Draw how much of the score's variance each setting explains.

    Args:
        shares: Setting -> share in [0, 1], the largest first.
        path: The PNG file.
    """
    if not shares:
        return False
    with drawn(path, 8, 1.3 + 0.45 * len(shares)) as figure:
        axes = figure.subplots()
        bars = axes.barh(list(shares), [100 * share for share in shares.values()], color="#0072B2", height=0.65)
        axes.bar_label(bars, fmt="%.0f", padding=4)
        axes.invert_yaxis()
        axes.set_xlim(0, 110 * max(shares.values()))
        axes.set_xlabel("share of the explained variance of the score (%)")
        axes.spines[["top", "right"]].set_visible(False)
    return True


def _styles(campaign: Campaign) -> dict[str, Style]:
    """Return each format's colour and marker: the same ones in every campaign."""
    met = {trial.format for trial in campaign.trials}
    others = zip(sorted(met - STYLES.keys()), MORE_STYLES * len(met), strict=False)
    return {**{format: style for format, style in STYLES.items() if format in met}, **dict(others)}


def _heights(campaign: Campaign, points: Iterable[Point]) -> list[float]:
    scale = 100 if is_accuracy(campaign.metric) else 1
    return [scale * point.score for point in points if point.score is not None]


def _errors(campaign: Campaign, points: Iterable[Point]) -> list[float]:
    scale = 100 if is_accuracy(campaign.metric) else 1
    return [scale * (campaign.error(point) or 0.0) for point in points]


def _markers(axes: "Axes", campaign: Campaign, x: list[float], points: list[Point], style: Style, label: str) -> None:
    if points:
        errors: Any = _errors(campaign, points) if any(map(campaign.error, points)) else None
        axes.errorbar(x, _heights(campaign, points), yerr=errors, linestyle="none", marker=style[1], color=style[0],
                      markersize=8, markeredgecolor="white", elinewidth=0.7, capsize=2, label=label)  # fmt: skip


def _scale(axes: "Axes", values: list[float]) -> None:
    """Use a logarithmic axis for what spans more than a factor of 4, with plain numbers at either."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if min(values) > 0 and max(values) > 4 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _legend(figure: "Figure", panels: Iterable["Axes"]) -> None:
    """Put one legend for all panels above them; the points of one entry may be in some panels only."""
    found = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found.update(dict(zip(labels, handles, strict=True)))
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=len(found), frameon=False)
