"""``metalora report``: what a campaign has found, read from its folder alone."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from metalora.errors import UserError
from metalora.evaluate.significance import compare, sentence
from metalora.files import atomic_folder
from metalora.places import absolute
from metalora.reading import read_yaml
from metalora.report.campaign import Campaign, Trial, is_accuracy, metric_label
from metalora.report.campaign_plots import plot_cost, plot_importances, plot_ranks
from metalora.report.campaign_tables import (
    best,
    failure_section,
    heading,
    leaderboard,
    leaderboard_section,
    standing,
    task_section,
)
from metalora.report.importance import MIN_POINTS, importances
from metalora.report.parallel_plot import plot_parallel
from pipelines.console import terminal
from pipelines.listener import read_metrics
from pipelines.options import make_parser
from pipelines.results import CONFIG, METRICS, find_run

CAMPAIGN, TRIAL = "campaign.yaml", "trial.json"  # `pipelines.campaign` has them too, but imports Ray
TOLD = ("space", "searcher", "scheduler", "seeds")
SHORT_ROWS = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora report`` with command-line arguments.

    Raises:
        UserError: no such campaign, or one that cannot be read.
    """
    parser = make_parser("metalora report", "Say in tables and pictures what a campaign has found.")
    parser.usage = None
    parser.add_argument("--campaign", metavar="NAME", required=True, help="the campaign's name")
    parser.add_argument("--output-folder", metavar="DIR", default="runs", help="where it is (default: runs)")
    options = parser.parse_args(arguments)
    folder = find_run(options.campaign, absolute(options.output_folder), CAMPAIGN, "campaign")
    campaign = read_campaign(folder)
    report = _write(campaign, folder / "report")
    console = terminal()
    console.print(leaderboard_table(campaign))
    console.print(f"{standing(campaign)}\n{best(campaign).replace('**', '')}")
    console.print(f"report    {report / 'report.md'}", soft_wrap=True)


def write_report(folder: Path) -> Path:
    """Write ``report/report.md`` and its pictures into a campaign's folder; what stood there before is replaced.

    Args:
        folder: The campaign's folder, whatever its trials have come to.

    Returns:
        The report's folder.

    Raises:
        UserError: the campaign's settings cannot be read.
    """
    return _write(read_campaign(folder), folder / "report")


def read_campaign(folder: Path) -> Campaign:
    """Read a campaign and its trials; a trial without a readable ``trial.json`` is left out, it has not begun.

    Raises:
        UserError: ``campaign.yaml`` cannot be read, or does not say what was optimized.
    """
    plan = read_yaml(folder / CAMPAIGN)
    search = plan.get("campaign") or {}
    if "metric" not in search or search.get("mode") not in ("max", "min"):
        raise UserError(f"{folder / CAMPAIGN} must name the campaign's metric, and mode max or min")
    metric = search["metric"]
    notes = {path.parent: _read_json(path) for path in sorted(folder.glob(f"trials/*/{TRIAL}"))}
    records = {path: _last_values(path, note) for path, note in notes.items()}
    task_metric = _task_metric(metric, {name for values in records.values() for name in values})
    return Campaign(
        name=folder.resolve().name,
        search={name: search[name] for name in TOLD if name in search},
        metric=metric,
        mode=search["mode"],
        objectives=tuple(search.get("objectives") or [metric]),
        task_metric=task_metric,
        trials=tuple(
            _trial(path, note, records[path], metric, task_metric, plan.get("config") or {})
            for path, note in notes.items()
            if note
        ),
    )


def leaderboard_table(campaign: Campaign) -> Table:
    """Return the first rows of the leaderboard, for the terminal: without the trials' statuses, which take room."""
    head, body = leaderboard(campaign, SHORT_ROWS)
    table = Table(title=f"campaign {campaign.name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(head[:-1]):
        table.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
    for row in body:
        table.add_row(*map(Text, row[:-1]))
    return table


def _write(campaign: Campaign, folder: Path) -> Path:
    with atomic_folder(folder) as report:
        sections = [heading(campaign), _verdict(campaign), leaderboard_section(campaign)]
        sections += _pictures(campaign, report)
        sections += [task_section(campaign), failure_section(campaign)]
        text = "\n\n".join(section for section in sections if section)
        (report / "report.md").write_text(text + "\n", encoding="utf-8")
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _last_values(folder: Path, note: Mapping[str, Any]) -> dict[str, float]:
    """Return a trial's finite metrics, each as last reported."""
    last: dict[str, float] = {}
    for _, _, values in read_metrics(folder / METRICS):
        last.update(values)
    last.update(note.get("result") or {})  # what the search has seen; it alone has the costs
    return {name: value for name, value in last.items() if isinstance(value, int | float) and math.isfinite(value)}


def _task_metric(metric: str, names: set[str]) -> str:
    """Return which metric tells of tasks: the campaign's own if it does, else k-NN at the largest K."""
    if any(name.startswith(f"{metric}/") for name in names):
        return metric
    numbers = [int(found[1]) for name in names if (found := re.match(r"val/knn(\d+)/", name))]
    return f"val/knn{max(numbers)}" if numbers else metric


def _trial(
    folder: Path,
    note: Mapping[str, Any],
    last: Mapping[str, float],
    metric: str,
    task_metric: str,
    common: Mapping[str, Any],
) -> Trial:
    settings = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else common
    rates = [
        v["train/images_per_second"] for _, _, v in read_metrics(folder / METRICS) if "train/images_per_second" in v
    ]
    batch_size = (settings.get("data") or {}).get("batch_size")
    point = note.get("point") or {}
    prefix = f"{task_metric}/"
    test = metric.replace("val/", "test/", 1) if metric.startswith("val/") else None
    return Trial(
        name=note.get("name", folder.name),
        status=note.get("status", "pending"),
        error=note.get("error"),
        format=point.get("format") or (settings.get("adapter") or {}).get("format", "unknown"),
        point=point,
        seed=note.get("seed", 0),
        value=last.get(metric),
        test=last.get(test) if test else None,
        tasks={name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)},
        parameters=note.get("parameters"),
        step_ms=1000 * batch_size / median(rates) if batch_size and rates else None,
    )


def _verdict(campaign: Campaign) -> str:
    """Compare the formats' best points on the test split, which did not choose them, where seeds allow it."""
    tests = {
        format: {trial.seed: trial.test for trial in point.finished if trial.test is not None}
        for format, point in campaign.best_of_formats.items()
    }
    seeds = sorted(set.intersection(*(set(values) for values in tests.values()))) if tests else []
    if len(tests) < 2 or len(seeds) < 2 or not is_accuracy(campaign.metric):
        return ""
    said = sentence(compare({format: [values[seed] for seed in seeds] for format, values in tests.items()}))
    return f"The best points of the formats, by {metric_label(campaign.metric.replace('val/', 'test/', 1))}: {said}"


def _pictures(campaign: Campaign, report: Path) -> list[str]:
    """Draw what can be drawn, and return the report's sections on it."""
    sections = []
    if plot_cost(campaign, report / "cost.png"):
        sections.append(
            "## Score and cost\n\n![Score against trained parameters and step time](cost.png)\n\n"
            "Finished points; bars are standard deviations over seeds. Step times are those of this campaign's "
            "machines, with as many trials at a time as ran."
        )
    if plot_ranks(campaign, report / "ranks.png"):
        sections.append(
            "## Rank\n\n![Score by rank](ranks.png)\n\nThe line joins the best point of each rank, pale marks are "
            "the others. A rank is not the same size in all formats: tr of rank R has R x R channels."
        )
    shares = importances(campaign.ranked)
    if plot_importances(shares, report / "importance.png"):
        sections.append(
            "## Settings\n\n![Importance of the settings](importance.png)\n\n"
            f"fANOVA of Optuna, on {len(campaign.ranked)} finished points: the share of the variance that each "
            "setting explains by itself. Where a setting does not apply to a format, it counts as at its usual value."
        )
    else:
        sections.append(
            f"## Settings\n\nThe settings' importance takes {MIN_POINTS} finished points that differ, "
            f"there are {len(campaign.ranked)}."
        )
    if plot_parallel(campaign, report / "parallel.png"):
        sections.append("![The points as lines over their settings](parallel.png)")
    return sections
