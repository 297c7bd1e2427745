"""Measure images per second of 1, 2, ... workers: torch.distributed processes that train with DDP on synthetic images.

Weak scaling keeps the batch per worker, strong scaling the batch per optimizer step. Efficiency is the rate divided by
N times the rate of one worker.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from metalora.build import build_model, build_networks
from metalora.config import Config
from metalora.data.dataset import Batch
from metalora.data.table import Table
from metalora.errors import UserError, given_as
from metalora.group import Group
from metalora.train.kept import ConditionCache
from metalora.train.learner import AdapterLearner
from metalora.train.reporter import SilentReporter
from metalora.train.trainer import Trainer
from pipelines.bench.common import SETTINGS, Result, Size, publish, read_options, timed
from pipelines.bench.training import RateReporter, step_seconds, training_settings

CLASSES, DOMAINS = 100, 4
SIZES = {
    "repeats": Size("rounds", 1, 3),
    "steps": Size("optimizer steps per measurement", 30, 60),
    "max-workers": Size("largest number of workers: on GPUs if there are any, else on CPU cores", 2, 64),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora bench scaling``."""
    options = read_options("scaling", __doc__ or "", SIZES, arguments, sections=SETTINGS)
    config = training_settings(options)
    if options.steps < 20:
        raise UserError(f"--steps {options.steps}: at least 20, as the first ten warm up")
    worlds = world_sizes(min(options.max_workers, places()))
    if len(worlds) == 1:
        raise UserError("scaling needs two workers: this machine has room for one, or --max-workers is 1")
    unfit = [n for n in worlds if config.data.batch_size % (n * config.train.accumulate)]
    if unfit:
        raise UserError(
            f"batch_size {config.data.batch_size} cannot be shared by {unfit[0]} workers: choose a multiple"
            f"{given_as('batch_size')}"
        )
    threads = max(1, (os.cpu_count() or 1) // worlds[-1])
    measured = [Measurement.run(config, n, options.steps, threads) for _ in range(options.repeats) for n in worlds]
    publish(_result(config, worlds, measured, threads), options)


def places() -> int:
    """Return the number of workers that this machine has room for: its GPUs, or its CPU cores."""
    return torch.cuda.device_count() or os.cpu_count() or 1


def world_sizes(most: int) -> list[int]:
    """Return the numbers of workers to measure: 1, 2, 4, ... up to ``most``."""
    return [n for n in (2**i for i in range(most.bit_length())) if n <= most]


@dataclass(frozen=True)
class Measurement:
    """The measurement of one start of N workers.

    Attributes:
        world: N, the number of workers.
        seconds: Seconds per step, by ``weak`` and ``strong``.
        apart: Seconds per step of workers that exchange nothing, each with its share of the batch.
        exchange: Seconds for summing all gradients over the workers, and nothing else.
    """

    world: int
    seconds: dict[str, float]
    apart: dict[str, float]
    exchange: float

    @staticmethod
    def run(config: Config, world: int, steps: int, threads: int) -> "Measurement":
        """Start the workers and wait for them."""
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(  # type: ignore[attr-defined, no-untyped-call]
                _rank, args=(world, config, steps, threads, folder), nprocs=world
            )
            return Measurement(world, **json.loads((Path(folder) / "found.json").read_text(encoding="utf-8")))


def shares(batch: int, world: int) -> dict[str, int]:
    """Return the images per worker and step, by the kind of scaling."""
    return {"weak": batch, "strong": batch // world}


def efficiency(world: int, batch: int, seconds: float, alone_batch: int, alone_seconds: float) -> float:
    """Return the rate of N workers divided by N times the rate of one; rates are batch / seconds per step."""
    return batch / seconds / (world * alone_batch / alone_seconds)


def _rank(rank: int, world: int, config: Config, steps: int, threads: int, folder: str) -> None:
    """Train as one rank of ``world``, once for each kind of scaling; rank 0 writes the measurement."""
    torch.set_num_threads(threads)
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, f"file://{folder}/store", rank=rank, world_size=world)
    found: dict[str, Any] = {"seconds": {}, "apart": {}}
    for kind, share in shares(config.data.batch_size, world).items():
        for how, group in (("apart", Group(device)), ("seconds", Group.current(device))):
            data = replace(config.data, batch_size=share * group.world)
            trainer = synthetic_trainer(replace(config, data=data), steps, group)
            dist.barrier()
            found[how][kind] = _time_epoch(trainer)
    gradients = torch.zeros(sum(parameter.numel() for parameter in trainer.parameters), device=device)
    found["exchange"] = timed({"sum": lambda: dist.all_reduce(gradients)}, 10, 3, device)["sum"].median
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads now and then abort a process that ends by the interpreter's own way; all there is has been written
    os._exit(0)


def _time_epoch(trainer: Trainer) -> float:
    """Train an epoch; return the median seconds per step on rank 0, whose steps wait for all ranks."""
    assert isinstance(trainer.reporter, RateReporter)
    trainer.train_epoch()
    found = step_seconds(trainer.reporter.reports, trainer.config.data.batch_size, trainer.steps_per_epoch)
    return statistics.median(found) if found else 0.0


def synthetic_trainer(config: Config, steps: int, group: Group) -> Trainer:
    """Build a rank's trainer for epochs of ``steps`` steps, all on one batch of noise that is on the device.

    Extractor features are in the cache, as they are when images are trained on again and again.
    """
    device = group.device
    config = replace(config, data=replace(config.data, keep_images=0.0))  # there are none
    table = synthetic_table(steps * config.data.batch_size)
    backbone, extractor = build_networks(config, print)
    model = build_model(config, backbone, extractor, table.labels).to(device)
    share = config.data.batch_size // group.world // config.train.accumulate
    images = torch.randint(256, (share, *backbone.input_size), dtype=torch.uint8, device=device)
    rows = torch.arange(share)
    batch = Batch(images, torch.from_numpy(table.label[:share]), torch.from_numpy(table.domain[:share]), rows)
    learner = OneBatch(config, model, table, backbone.inputs, group, SilentReporter())
    learner.batch = batch
    if model.extractor is not None:
        with torch.no_grad():
            features = model.extractor(learner.feed.prepare(images)).float().cpu()
        learner.evaluator.cache = ConditionCache.of(rows, features, len(table))
    return Trainer(config, learner, group, RateReporter())


class OneBatch(AdapterLearner):
    """A learner that loads nothing and gets the same micro-batch again and again.

    Attributes:
        batch: The micro-batch; set after the learner was made.
    """

    batch: Batch

    def batches(self, epoch: int, step: int) -> Iterator[Batch]:
        """Yield the micro-batches of an epoch."""
        self.model.train()
        return iter([self.batch] * (self.steps_per_epoch * self.config.train.accumulate))


class NoImages:
    """A store for a table of which only labels and domains are read."""

    def read(self, row: int) -> bytes:
        """Raise an error, since synthetic images are not stored."""
        raise RuntimeError("synthetic images are not stored")

    def name(self, row: int) -> str:
        """Return the number of the row as text."""
        return str(row)


def synthetic_table(images: int) -> Table:
    """Make a table of train images that do not exist."""
    rows = np.arange(images)
    return Table(
        store=NoImages(),
        store_rows=rows,
        label=rows % CLASSES,
        domain=rows % DOMAINS,
        split=np.zeros(images, dtype=np.int8),
        id=rows.astype(str).astype(object),
        labels=tuple(f"class {i:03d}" for i in range(CLASSES)),
        domains=tuple(f"domain {i}" for i in range(DOMAINS)),
        fingerprint="synthetic",
    )


def _result(config: Config, worlds: Sequence[int], measured: Sequence[Measurement], threads: int) -> Result:
    size = config.data.batch_size
    alone = statistics.median(s for one in measured if one.world == 1 for s in one.seconds.values())
    rows: list[dict[str, Any]] = [
        _row(kind, [one for one in measured if one.world == n], size, alone)
        for kind in ("weak", "strong")
        for n in worlds
    ]
    place = "GPU" if torch.cuda.is_available() else f"CPU process, threads: {threads}"
    text = (
        f"Images per second of N workers (each a {place}) that train {config.backbone.backbone} with "
        f"{config.adapter.format} on synthetic images, batch {size} per worker (weak) or in all (strong); efficiency "
        "is the rate divided by N times the rate of one worker."
    )
    floor = (
        '"apart" is the efficiency of N workers that exchange nothing, in the same processes: what is lost there is '
        "lost to memory, caches and other programs. Exchange is the time of summing all gradients with nothing else to "
        "do; DDP does it during the backward pass."
    )
    most = {f"{row['scaling']} efficiency": row["efficiency"] for row in rows if row["workers"] == worlds[-1]}
    return Result("scaling", text, floor, rows, most)


def _row(kind: str, several: Sequence[Measurement], size: int, alone: float) -> dict[str, Any]:
    """Return the row of some starts of as many workers."""
    world = several[0].world
    seconds = [one.seconds[kind] for one in several]
    step, apart = statistics.median(seconds), statistics.median(one.apart[kind] for one in several)
    batch = shares(size, world)[kind] * world
    return {
        "scaling": kind,
        "workers": world,
        "batch": batch,
        "step ms": 1000 * step,
        "images/s": batch / step,
        "efficiency": efficiency(world, batch, step, size, alone),
        "apart": efficiency(world, batch, apart, size, alone),
        "exchange ms": 1000 * statistics.median(one.exchange for one in several),
        "spread": (max(seconds) - min(seconds)) / step,
    }
