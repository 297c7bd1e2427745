"""The common parts of the benchmarks of trainings: settings, commands to run, and the clock of the loop.

At least every ten steps the loop reports the mean rate since the epoch began. Two reports of one epoch give the seconds
per step between them, without start-up, validation and checkpoints, with Ray as well as without.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metalora.config import Config, to_yaml
from metalora.errors import UserError
from metalora.models.backbones.small_networks import EMBEDDED
from metalora.train.reporter import Progress, Write
from pipelines.bench.photos import write_photos
from pipelines.options import resolve
from pipelines.run.folder import METRICS, last_line
from pipelines.run.log import read_metrics

STOP_SECONDS = 60
PHOTO_SIDE = 256  # pixels: what 224 x 224 networks are usually fed from
RATE = "train/images_per_second"
SMALL: dict[str, dict[str, Any]] = {
    "backbone": {"backbone": "resnet20", "weights": "none", "image_size": 32},
    "adapter": {"rank": 2},
    "data": {"batch_size": 8},
}
ON_CPU: dict[str, dict[str, Any]] = {"backbone": {"weights": "none"}, "data": {"batch_size": 64}}
ON_GPU: dict[str, dict[str, Any]] = {
    "backbone": {"backbone": "timm/resnet50", "weights": "none"},
    "adapter": {"rank": 4},
    "data": {"batch_size": 256},
}

# step, time of day, images a second since the epoch began
Report = tuple[int, float, float]


def training_settings(options: argparse.Namespace) -> Config:
    """Return the settings of a benchmark's trainings: the given ones, over defaults that suit the device.

    Weights are random, since they do not change the time.

    Raises:
        UserError: a setting is not accepted.
    """
    base = SMALL if options.small else ON_GPU if torch.cuda.is_available() else ON_CPU
    return resolve(options, {**base, "cluster": {"workers": 0}})


def with_photos(config: Config, options: argparse.Namespace, scratch: Path) -> Config:
    """Return the settings, with the sample photographs as data if none are given and the embedded scans are too small.

    Args:
        config: All settings.
        options: The parsed command line; ``images`` is the number of photographs.
        scratch: Folder to write them into.
    """
    if hasattr(options, "data") or (config.backbone.backbone in EMBEDDED and not options.small):
        return config
    side = (config.backbone.image_size or 32) if options.small else PHOTO_SIDE
    file = write_photos(scratch / "photos.parquet", options.images, side)
    return replace(config, data=replace(config.data, data=str(file)))


class RateReporter:
    """A reporter that only keeps the reported rates and their times."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def progress(self, progress: Progress) -> None:
        """Do nothing."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the rate."""
        if RATE in values:
            self.reports.append((step, time.time(), values[RATE]))

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Do nothing."""


def read_reports(folder: Path) -> list[Report]:
    """Read the reports in a run's folder."""
    return [(step, when, values[RATE]) for step, when, values in read_metrics(folder / METRICS) if RATE in values]


def step_seconds(reports: Iterable[Report], batch_size: int, steps_per_epoch: int) -> list[float]:
    """Return the mean seconds per step between each two successive reports of one epoch.

    The steps of an epoch before its first report do not count: the loaders start, and kernels are chosen.
    """
    found, last = [], (0, 0, 0.0)  # epoch, steps done in it, seconds since it began
    for step, _, rate in reports:
        epoch, done = (step - 1) // steps_per_epoch, (step - 1) % steps_per_epoch + 1
        elapsed = done * batch_size / rate
        if last[1] and last[0] == epoch:
            found.append((elapsed - last[2]) / (done - last[1]))
        last = (epoch, done, elapsed)
    return found


def first_step(reports: Sequence[Report], batch_size: int) -> float:
    """Return the time of day at which the first step of the first epoch began."""
    step, when, rate = reports[0]
    return when - step * batch_size / rate


def train_command(config: Config, folder: Path, *arguments: str) -> list[str]:
    """Return the command that trains with these settings, as the run ``bench`` in a folder, without tracking."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "bench.yaml"
    settings.write_text(to_yaml(config), encoding="utf-8")
    return [
        *(sys.executable, "-m", "pipelines.cli", "train", "--config", str(settings), "--output", str(folder)),
        *("--run-name", "bench", "--tracking-uri", "none", *arguments),
    ]


def run_command(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    until: Callable[[], bool] = lambda: False,
) -> float:
    """Run a command to its end, or until a condition is true.

    Args:
        command: The command line.
        log: File for the command's output.
        environment: Variables to add to this process's environment.
        until: Checked again and again; once it is true, the command is interrupted, as a user would do.

    Returns:
        The time of day at which it started.

    Raises:
        UserError: the command failed; the message has the last line of its output.
    """
    began = time.time()
    with log.open("w", encoding="utf-8") as output:
        with _interrupts_heeded():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
            )
        try:
            while process.poll() is None and not until():
                time.sleep(0.02)
        finally:
            stopped = process.poll() is None
            if stopped:
                _stop(process)
    if process.returncode and not stopped:
        raise UserError(f"'{' '.join(command[2:5])}' failed: {last_line(log.read_text(encoding='utf-8'))}")
    return began


@contextmanager
def _interrupts_heeded() -> Iterator[None]:
    """Make sure that commands started in the block receive interrupts, also if this process ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a command, so that it takes its cluster down; one that does not listen is ended."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
