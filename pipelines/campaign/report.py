"""The report of a campaign: its results in tables and plots."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metalora.errors import UserError
from metalora.files import atomic_folder
from metalora.report.campaign import Campaign, Trial
from metalora.report.campaign_tables import (
    best,
    failure_section,
    heading,
    leaderboard,
    leaderboard_section,
    standing,
    task_section,
)
from metalora.report.comparison import ORIGINAL
from pipelines.campaign.original import read_original
from pipelines.campaign.pictures import picture_sections
from pipelines.campaign.trials import TrialRecord, TrialSpec, read_plan, read_trial
from pipelines.campaign.verdict import answers
from pipelines.campaign.verdict_words import verdict_lines, verdict_section
from pipelines.run.folder import CONFIG, METRICS, TRIAL, TRIALS, read_settings
from pipelines.run.log import read_metrics

TOLD = ("space", "searcher", "scheduler", "repeats")


SHORT_ROWS = 10


RATE = "train/images_per_second"


def write_report(folder: Path, campaign: Campaign | None = None) -> Path:
    """Write ``report/report.md`` and its plots into a campaign's folder; an earlier report is replaced.

    Args:
        folder: The campaign's folder; its trials may be in any state.
        campaign: The campaign, if it has been read.

    Returns:
        The report's folder.

    Raises:
        UserError: the campaign's settings cannot be read.
    """
    return _write(campaign or read_campaign(folder), folder / "report")


def read_campaign(folder: Path) -> Campaign:
    """Read a campaign and its trials; trials that have written nothing yet are left out.

    Raises:
        UserError: ``campaign.yaml`` cannot be read, or lacks the objectives.
    """
    plan = read_plan(folder)
    search: Mapping[str, Any] = plan["campaign"]
    metric, mode = search["metric"], search["mode"]
    read = [_read_trial(file) for file in sorted(folder.glob(f"{TRIALS}/*/{TRIAL}"))]
    task_metric = _task_metric(metric, {name for one in read for name in one.last})
    finished = [folder / TRIALS / one.record.trial.name for one in read if one.record.status == "finished"]
    original = read_original(finished, metric.replace("val/", "test/", 1))
    return Campaign(
        name=folder.resolve().name,
        search={name: search[name] for name in TOLD if name in search},
        metric=metric,
        mode=mode,
        objectives=tuple(search.get("objectives") or [metric]),
        task_metric=task_metric,
        trials=tuple(_trial(one, metric, task_metric, plan["config"]) for one in read),
        images={"test": original.images, **plan.get("images", {})},
        original=original.value,
    )


def leaderboard_table(campaign: Campaign) -> Table:
    """Return the first rows of the leaderboard for the terminal, without the trials' statuses to save space."""
    head, body = leaderboard(campaign, SHORT_ROWS)
    table = Table(title=f"campaign {campaign.name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(head[:-1]):
        table.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
    for row in body:
        table.add_row(*map(Text, row[:-1]), style="dim" if row[1] == ORIGINAL else "")
    return table


def verdict(campaign: Campaign) -> list[str]:
    """Return lines for the terminal: what an image is worth, and for each question whether an answer can be told."""
    return verdict_lines(campaign, answers(campaign))


def show(console: Console, campaign: Campaign) -> None:
    """Print the leaderboard, the state of the trials, the first point and whether it can be told from others."""
    console.print(leaderboard_table(campaign))
    for line in (standing(campaign), best(campaign).replace("**", ""), *verdict(campaign)):
        console.print(line, soft_wrap=True)


def _write(campaign: Campaign, folder: Path) -> Path:
    with atomic_folder(folder) as report:
        sections = [heading(campaign), verdict_section(campaign, answers(campaign)), leaderboard_section(campaign)]
        sections += picture_sections(campaign, report)
        sections += [task_section(campaign), failure_section(campaign)]
        text = "\n\n".join(section for section in sections if section)
        (report / "report.md").write_text(text + "\n", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class _Read:
    """The content of a trial's folder.

    Attributes:
        record: Its ``trial.json``.
        settings: Its ``config.yaml``; empty if there is none.
        last: Its finite metrics, each as last reported.
        rates: Its reported rates, in images per second.
    """

    record: TrialRecord
    settings: Mapping[str, Any] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    rates: Sequence[float] = ()


def _read_trial(file: Path) -> _Read:
    folder = file.parent
    try:
        record = read_trial(file)
        settings = read_settings(folder) if (folder / CONFIG).is_file() else {}
        last: dict[str, float] = {}
        rates = []
        for _, _, values in read_metrics(folder / METRICS):
            last.update(values)
            rates += [values[RATE]] if RATE in values else []
        last.update(record.result)  # what the search has seen; it alone has the costs
    except UserError as error:
        return _Read(TrialRecord(TrialSpec(0, {}, 0, folder.name), status="unreadable", error=str(error)))
    return _Read(record, settings, {name: value for name, value in last.items() if math.isfinite(value)}, rates)


def _task_metric(metric: str, names: set[str]) -> str:
    """Return which metric tells of tasks: the campaign's own if it does, else k-NN at the largest K."""
    if any(name.startswith(f"{metric}/") for name in names):
        return metric
    numbers = [int(found[1]) for name in names if (found := re.match(r"val/knn(\d{1,9})/", name))]
    return f"val/knn{max(numbers)}" if numbers else metric


def _trial(read: _Read, metric: str, task_metric: str, common: Mapping[str, Any]) -> Trial:
    record, settings = read.record, {**common, **read.settings}
    batch_size = settings.get("data", {}).get("batch_size")
    rate = median(read.rates) if read.rates else 0
    prefix = f"{task_metric}/"
    test = metric.replace("val/", "test/", 1) if metric.startswith("val/") else None
    point = record.trial.point
    return Trial(
        name=record.trial.name,
        status=record.status,
        error=record.error,
        format=str(point.get("format") or settings.get("adapter", {}).get("format", "unknown")),
        point=point,
        random_seed=record.trial.random_seed,
        value=read.last.get(metric),
        test=read.last.get(test) if test else None,
        tasks={name.removeprefix(prefix): value for name, value in read.last.items() if name.startswith(prefix)},
        parameters=record.parameters,
        step_ms=1000 * batch_size / rate if isinstance(batch_size, int) and rate > 0 else None,
    )
