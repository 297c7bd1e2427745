"""Measure what Ray costs a training: the loop on Ray Train with one worker, against the same loop without Ray."""

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metalora.config import Config
from metalora.data import load_table
from metalora.data.loaders import count_loader_workers
from metalora.errors import UserError
from pipelines.bench.common import SETTINGS, Result, Size, publish, read_options
from pipelines.bench.training import (
    first_step,
    read_reports,
    run_command,
    step_seconds,
    train_command,
    training_settings,
    with_photos,
)

SIZES = {
    "repeats": Size("trainings of each kind, in turn", 1, 3),
    "images": Size("photographs to train on, if they are the data", 600, 8000),
    "steps": Size("smallest number of optimizer steps per training", 24, 200),
    "threads": Size("CPU threads per training", 1, os.cpu_count() or 1),
}
FEWEST_STEPS = 12  # the loop reports at the tenth and at the last
KINDS = {"bare": 0, "Ray Train": 1}  # workers


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora bench overhead``."""
    options = read_options("overhead", __doc__ or "", SIZES, arguments, sections=SETTINGS)
    config = training_settings(options)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        config = with_photos(config, options, scratch)
        steps = len(load_table(config.data).rows("train")) // config.data.batch_size
        if steps < FEWEST_STEPS:
            wanted = f"{FEWEST_STEPS} are wanted: lower --batch-size, or give more images"
            raise UserError(f"an epoch has {steps} optimizer steps, {wanted}")
        config = replace(config, train=replace(config.train, epochs=-(-options.steps // steps)))
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        starts: dict[str, list[float]] = {kind: [] for kind in KINDS}
        fastest: dict[str, float] = {}
        for number in range(options.repeats):
            for kind, workers in KINDS.items():
                found, start = train_once(config, workers, steps, options.threads, scratch / f"{number}-{workers}")
                seconds[kind].append(statistics.median(found))
                fastest[kind] = min(fastest.get(kind, found[0]), *found)
                starts[kind].append(start)
    publish(_result(config, options.threads, seconds, fastest, starts), options)


def train_once(
    config: Config, workers: int, steps_per_epoch: int, threads: int, folder: Path
) -> tuple[list[float], float]:
    """Run ``metalora train``; return the seconds of its steps, and the seconds from its start to its first step."""
    size, loaders = config.data.batch_size, count_loader_workers(config.data.loader_workers, threads)
    command = train_command(config, folder, "--workers", str(workers), "--validate-every", "0",
                            "--cpus-per-worker", str(threads), "--loader-workers", str(loaders))  # fmt: skip
    run, last = folder / "bench", config.train.epochs * steps_per_epoch

    def trained() -> bool:
        return any(step == last for step, *_ in read_reports(run))

    # Ray sets it to a worker's CPUs; the other is to compute with as many threads.
    began = run_command(command, folder / "log.txt", {"OMP_NUM_THREADS": str(threads)}, until=trained)
    reports = read_reports(run)
    return step_seconds(reports, size, steps_per_epoch), first_step(reports, size) - began


def _result(
    config: Config,
    threads: int,
    seconds: dict[str, list[float]],
    fastest: dict[str, float],
    starts: dict[str, list[float]],
) -> Result:
    steps = {kind: statistics.median(values) for kind, values in seconds.items()}
    rows: list[dict[str, Any]] = [
        {
            "loop": kind,
            "step ms": 1000 * steps[kind],
            "to bare": steps[kind] / steps["bare"],
            "fastest ms": 1000 * fastest[kind],
            "fastest to bare": fastest[kind] / fastest["bare"],
            "spread": (max(seconds[kind]) - min(seconds[kind])) / steps[kind],
            "start-up s": statistics.median(starts[kind]),
        }
        for kind in KINDS
    ]
    where = "one GPU" if torch.cuda.is_available() else f"{threads} of {os.cpu_count()} CPU cores"
    what = f"{config.backbone.backbone}, {config.adapter.format}, batch {config.data.batch_size}, on {where}"
    measured = (
        f"Milliseconds per optimizer step of {what}: metalora train --workers 1 (Ray Train) and --workers 0 (bare), "
        "in turn, without start-up, validation and checkpoints: the median, and the fastest ten steps, which other "
        "programs disturbed least. Start-up is from the command to its first step, with "
        "warm caches; reports through Ray arrive up to 0.3 s late."
    )
    floor = "the bare loop: the same steps without Ray; a ratio of 1 means that Ray costs nothing."
    ratios = {"ratio": rows[1]["to bare"], "fastest ratio": rows[1]["fastest to bare"]}
    return Result("overhead", measured, floor, rows, ratios)
