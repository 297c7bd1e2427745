"""Measure trials per hour of a small campaign, and the pause from a trial's end to the next one's first step."""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalora.errors import UserError
from metalora.reading import read_yaml
from pipelines.bench.common import Result, Size, publish, read_options
from pipelines.bench.photos import write_photos
from pipelines.bench.training import first_step, read_reports, run_command
from pipelines.campaign.spaces import load_space
from pipelines.campaign.trials import read_trials
from pipelines.run.folder import CONFIG, METRICS, TRIALS
from pipelines.run.log import read_metrics

SIZES = {
    "trials": Size("trials per campaign", 2, 6),
    "epochs": Size("epochs per trial", 1, 3),
    "images": Size("photographs to train on, with --small", 240, 240),
}
SMALL = ["--image-size", "32", "--batch-size", "8", "--evaluation-batch-size", "32"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora bench trials``."""
    options = read_options("trials", __doc__ or "", SIZES, arguments, _add_options)
    load_space(options.space)
    if options.trials < 2:
        raise UserError(f"--trials {options.trials}: a pause needs two trials")
    with tempfile.TemporaryDirectory() as name:
        data = options.data or (str(write_photos(Path(name) / "photos.parquet", options.images, 32))
                                if options.small else "embedded")  # fmt: skip
        settings = ["--data", data, "--weights", "none", "--epochs", str(options.epochs), *(SMALL * options.small)]
        one = run_campaign(options, [*settings, "--concurrent-trials", "1"], Path(name) / "one")
        many = one if options.small else run_campaign(options, settings, Path(name) / "many")
    publish(_result(options, one, many), options)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--space", default="quick", help="a space of tune_spaces/, or a file (default: %(default)s)")
    parser.add_argument("--data", help="images to train on (default: embedded; --small: photographs)")


@dataclass(frozen=True)
class Span:
    """The times of day when a trial began its first step and reported its last metrics."""

    begin: float
    end: float


@dataclass(frozen=True)
class Campaign:
    """The trials of a campaign, in the order of their beginning, and the seconds of the whole command."""

    spans: Sequence[Span]
    seconds: float

    @property
    def pauses(self) -> list[float]:
        """Return the seconds between each trial's end and the next one's first step."""
        pairs = zip(self.spans, self.spans[1:], strict=False)
        return [after.begin - before.end for before, after in pairs]

    @property
    def hourly(self) -> float:
        """Return trials per hour, from the first trial's first step to the last trial's end."""
        return 3600 * len(self.spans) / (max(span.end for span in self.spans) - self.spans[0].begin)

    @property
    def training(self) -> float:
        """Return the mean seconds per trial."""
        return statistics.mean(span.end - span.begin for span in self.spans)


def run_campaign(options: argparse.Namespace, settings: Sequence[str], output: Path) -> Campaign:
    """Run ``metalora tune`` and read its trials.

    Raises:
        UserError: the campaign or one of its trials failed.
    """
    output.mkdir()
    command = [
        *(sys.executable, "-m", "pipelines.cli", "tune", "--space", options.space, "--scheduler", "none"),
        *("--searcher", "random", "--trials", str(options.trials), "--tracking-uri", "none"),
        *("--output", str(output), "--run-name", "bench", *settings),
    ]
    began = run_command(command, output / "log.txt")
    return Campaign(read_spans(output / "bench"), time.time() - began)


def read_spans(folder: Path) -> list[Span]:
    """Read when the trials of a campaign ran.

    Raises:
        UserError: a trial has not finished.
    """
    spans = []
    for record in read_trials(folder):
        if record.status != "finished":
            raise UserError(f"trial {record.trial.name} is {record.status}: {record.error}")
        run = folder / TRIALS / record.trial.name
        batch_size = read_yaml(run / CONFIG)["data"]["batch_size"]
        *_, (_, end, _) = read_metrics(run / METRICS)
        spans.append(Span(first_step(read_reports(run), batch_size), end))
    return sorted(spans, key=lambda span: span.begin)


def _result(options: argparse.Namespace, one: Campaign, many: Campaign) -> Result:
    rows: list[dict[str, Any]] = []
    for name, campaign in (("one", one), ("as many as fit", many))[: 1 if many is one else 2]:
        rows.append(
            {
                "at a time": name,
                "trials": len(campaign.spans),
                "trials per hour": campaign.hourly,
                "s per trial": campaign.training,
                "whole command s": campaign.seconds,
            }
        )
    what = f"space {options.space!r}, {options.trials} random points of {options.epochs} epochs"
    measured = (
        f"Trials per hour of {what}, from the first trial's first step to the last one's end (its test), and the "
        "seconds from a trial's end to the next one's first step, one at a time on a warm cluster; reports of trials "
        "arrive up to 0.3 s late."
    )
    floor = "one at a time: trials that begin their first step the moment the one before ends."
    facts = {
        "pause s": statistics.median(one.pauses),
        "longest pause s": max(one.pauses),
        "floor trials per hour": 3600 / one.training,
        "to floor": one.hourly * one.training / 3600,
        "trials per hour": max(one.hourly, many.hourly),
    }
    return Result("trials", measured, floor, rows, facts)
