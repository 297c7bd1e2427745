"""The report of a campaign in Markdown."""

import re
from collections import Counter
from collections.abc import Sequence

from metalora.report.campaign import Campaign, Point, describe, is_accuracy, metric_label, varied
from metalora.report.comparison import ORIGINAL
from metalora.report.drawing import verbatim

ROWS = 30
STATUSES = {
    "finished": "finished", "stopped": "stopped early", "failed": "failed", "running": "running",
    "unreadable": "unreadable",
}  # fmt: skip
SPREAD = "std"
Row = Sequence[str]


def heading(campaign: Campaign) -> str:
    """Return the head of the report: title, search, objective, state of the trials and best point."""
    search = "; ".join(f"{name} {value}" for name, value in campaign.search.items())
    better = "larger" if campaign.mode == "max" else "smaller"
    objectives = f"`{campaign.metric}`, the {better} the better"
    if len(campaign.objectives) > 1:
        objectives += "; also optimized: " + ", ".join(f"`{name}`" for name in campaign.objectives[1:])
    lines = [f"# Campaign {verbatim(campaign.name)}", "", f"Search: {search}.", "", f"Objective: {objectives}.", ""]
    lines += [standing(campaign), "", best(campaign)]
    return "\n".join(lines)


def standing(campaign: Campaign) -> str:
    """Return a sentence with the number of trials by status."""
    counts = Counter(trial.status for trial in campaign.trials)
    listed = ", ".join(f"{counts[status]} {word}" for status, word in STATUSES.items() if counts[status])
    return f"{_count(len(campaign.trials), 'trial')}{f': {listed}' if listed else ''}."


def best(campaign: Campaign) -> str:
    """Return a sentence on the first point; the verdict tells whether it is more than the first."""
    if not campaign.ranked:
        return "No trial has finished with a value, so there is nothing to rank."
    point = campaign.ranked[0]
    cost = [f"{point.parameters:,} trained parameters"] if point.parameters is not None else []
    cost += [f"{point.step_ms:.1f} ms per step"] if point.step_ms is not None else []
    unit = " %" if is_accuracy(campaign.metric) else ""
    value = f"{number(point.score, campaign.metric)}{unit}"
    settings = describe(point, varied(campaign.points))
    return f"First by {campaign.metric}: **{settings}**: {', '.join([value, *cost])}."


def leaderboard(campaign: Campaign, rows: int = ROWS) -> tuple[Row, list[Row]]:
    """Return the head and at most ``rows`` rows, best first, then the original; columns without values are left out."""
    points, metric = campaign.points[:rows], campaign.metric
    front = {id(point) for point in campaign.front("parameters")}
    names = varied(campaign.points)
    columns = {
        "#": ["-" if p.score is None else f"{i}{'*' * (id(p) in front)}" for i, p in enumerate(points, 1)],
        "point": [describe(point, names) for point in points],
        f"{metric}{' %' if is_accuracy(metric) else ''}": [number(p.reached, metric) for p in points],
        SPREAD: [number(point.spread, metric) for point in points],
        "test": [number(point.test, metric) for point in points],
        "parameters": ["-" if point.parameters is None else f"{point.parameters:,}" for point in points],
        "ms per step": ["-" if point.step_ms is None else f"{point.step_ms:.1f}" for point in points],
        "trials": [_statuses(point) for point in points],
    }
    if campaign.original is not None:
        last = {"#": "", "point": ORIGINAL, "test": number(campaign.original, metric), "parameters": "0", "trials": ""}
        columns = {name: [*cells, last.get(name, "-")] for name, cells in columns.items()}
    known = {name: cells for name, cells in columns.items() if name in ("#", "trials") or set(cells) != {"-"}}
    return list(known), list(zip(*known.values(), strict=True))


def leaderboard_section(campaign: Campaign) -> str:
    """Return the leaderboard with notes on how to read it."""
    head, body = leaderboard(campaign)
    notes = []
    if SPREAD in head:
        notes.append("Values are means over the finished repeats, std their standard deviation.")
    if campaign.original is not None:
        notes.append("The original is the backbone without adapters.")
    if any(row[0].endswith("*") for row in body):
        notes.append("\\* is on the Pareto front of measured score against trained parameters.")
    if any(row[0] == "-" for row in body):
        notes.append("Points without a number have no finished trial; their values are the last ones reported.")
    if len(campaign.points) > ROWS:
        notes.append(f"{len(campaign.points) - ROWS} more points are not listed.")
    return f"## Leaderboard\n\n{markdown(head, body, left=2)}\n\n{' '.join(notes)}".rstrip()


def task_section(campaign: Campaign) -> str:
    """Return the accuracy of each format's best point on each task."""
    chosen = {format: point for format, point in campaign.best_of_formats.items() if point.tasks}
    if not chosen:
        return "## Tasks\n\nNo finished trial has reported accuracies by task."
    names = varied(campaign.points)
    body = []
    for task in sorted({task for point in chosen.values() for task in point.tasks}):
        images = campaign.count(f"{campaign.task_metric}/{task}")
        cells = [number(point.tasks.get(task), campaign.task_metric) for point in chosen.values()]
        body.append([verbatim(task), "-" if images is None else f"{images:,}", *cells])
    which = "\n".join(f"- {describe(point, names)}" for point in chosen.values())
    return (
        f"## Tasks\n\nThe first point of each format, {metric_label(campaign.task_metric)}; the fewer images, the less "
        f"a difference says.\n\n{markdown(['task', 'images', *chosen], body)}\n\n{which}"
    )


def failure_section(campaign: Campaign) -> str:
    """Return the failed and unreadable trials with the last line of their errors; empty if there are none."""
    failed = [trial for trial in campaign.trials if trial.status in ("failed", "unreadable")]
    if not failed:
        return ""
    body = []
    for trial in failed:
        lines = (trial.error or "").strip().splitlines()
        body.append([trial.name, verbatim(lines[-1] if lines else "no reason is known")])
    return f"## Failures\n\n{markdown(['trial', 'error'], body, left=2)}"


def markdown(head: Row, body: Sequence[Row], left: int = 1) -> str:
    """Return a Markdown table whose first ``left`` columns are aligned left, the others right."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    lines = [[re.sub(r"(?<!\\)\|", r"\|", cell) for cell in row] for row in [head, rule, *body]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _statuses(point: Point) -> str:
    counts = Counter(trial.status for trial in point.trials)
    return ", ".join(f"{counts[status]} {word}" for status, word in STATUSES.items() if counts[status])


def number(value: float | None, metric: str) -> str:
    """Return a metric's value as text: an accuracy in % without the sign, others with four digits, None as a dash."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if is_accuracy(metric) else f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
