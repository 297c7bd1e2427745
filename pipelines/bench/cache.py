"""Measure what caches save: time of a training epoch by kept features and images, and time to the first step."""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metalora.build import build_model, build_networks, build_trainer
from metalora.config import Config
from metalora.data import Table, load_table
from metalora.data.dataset import Batch
from metalora.data.loaders import count_loader_workers
from metalora.errors import UserError
from metalora.group import Group
from metalora.models.backbones.base import Backbone
from metalora.models.backbones.small_networks import EMBEDDED
from metalora.train.learner import AdapterLearner
from metalora.train.trainer import Trainer
from pipelines.backend.device import this_device
from pipelines.bench.common import SETTINGS, Result, Size, Timing, publish, read_options, timed
from pipelines.bench.training import (
    RateReporter,
    first_step,
    read_reports,
    run_command,
    train_command,
    training_settings,
    with_photos,
)

SIZES = {
    "repeats": Size("rounds", 1, 3),
    "images": Size("photographs to train on, if they are the data", 400, 4000),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora bench cache``."""
    options = read_options("cache", __doc__ or "", SIZES, arguments, sections=SETTINGS)
    config = training_settings(options)
    if not hasattr(options, "weights") and not options.small and config.backbone.backbone in EMBEDDED:
        config = replace(config, backbone=replace(config.backbone, weights="default"))  # they are cached too
    with tempfile.TemporaryDirectory() as name:
        config = with_photos(config, options, Path(name))
        config = replace(config, evaluate=replace(config.evaluate, validate_every=0))
        starts = {
            kind: statistics.median(values)
            for kind, values in start_seconds(config, Path(name), options.repeats).items()
        }
        times, filling = epoch_times(config, options.repeats)
    publish(_result(config, starts, times, filling), options)


def start_seconds(config: Config, scratch: Path, repeats: int) -> dict[str, list[float]]:
    """Measure the seconds from ``metalora train --workers 0`` to its first step, with an empty and a full cache."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for number in range(repeats):
        for kind in seconds:
            folder = scratch / f"{kind}-{number}"
            run = folder / "bench"
            command = train_command(config, folder, "--workers", "0", "--validate-every", "0")
            environment = {"METALORA_CACHE": str(scratch / f"cache-{number}")}

            def stepped(run: Path = run) -> bool:
                return bool(read_reports(run))

            began = run_command(command, folder / "log.txt", environment, until=stepped)
            seconds[kind].append(first_step(read_reports(run), config.data.batch_size) - began)
    return seconds


def epoch_times(config: Config, repeats: int) -> tuple[dict[str, Timing], float]:
    """Time epochs with everything ``cached``, with features ``computed`` and with images ``decoded`` at each step.

    The ``extractor`` is also timed alone, on as many images.

    Returns:
        The times, and the seconds for filling the cache.
    """
    device = this_device()
    table = load_table(config.data)
    networks = build_networks(config, print)
    config = replace(config, train=replace(config.train, epochs=repeats + 1))
    kinds = {
        "cached": config,
        "computed": replace(config, mapping=replace(config.mapping, cache_features=False)),
        "decoded": replace(config, data=replace(config.data, keep_images=0.0)),
    }
    trainers = {name: _trainer(settings, table, networks, device) for name, settings in kinds.items()}
    for trainer in trainers.values():
        _learner(trainer).feed.keep(trainer.config.data.keep_images * 2**30)
    filling = timed({"prepare": _learner(trainers["cached"]).evaluator.prepare}, 1, 0, device)["prepare"].median
    for name in ("computed", "decoded"):
        _learner(trainers[name]).evaluator.prepare()
    calls: dict[str, Callable[[], Any]] = {name: _epochs(trainer) for name, trainer in trainers.items()}
    calls["extractor"] = _extractor_alone(trainers["computed"])
    return timed(calls, repeats, 1, device), filling


def _trainer(config: Config, table: Table, networks: tuple[Backbone, Backbone | None], device: torch.device) -> Trainer:
    model = build_model(config, *networks, table.labels).to(device)
    if model.extractor is None:
        raise UserError(
            f"format {config.adapter.format.name!r} has no generated seeds and no extractor: choose cp or tr"
        )
    workers = count_loader_workers(config.data.loader_workers, torch.get_num_threads())
    return build_trainer(config, model, table, networks[0].inputs, Group(device), RateReporter(), workers)


def _epochs(trainer: Trainer) -> Callable[[], None]:
    """Return a function that trains one more epoch at each call."""
    return trainer.train_epoch


def _learner(trainer: Trainer) -> AdapterLearner:
    assert isinstance(trainer.learner, AdapterLearner)
    return trainer.learner


def _extractor_alone(trainer: Trainer) -> Callable[[], None]:
    """Return a function that extracts the features of one batch as often as an epoch has batches."""
    learner = _learner(trainer)
    extractor = learner.model.extractor
    assert extractor is not None
    batch = next(learner.batches(0, 0))
    assert isinstance(batch, Batch)
    images = learner.feed.prepare(batch.codes)

    def extract() -> None:
        with torch.no_grad():
            for _ in range(trainer.steps_per_epoch):
                extractor(images)

    return extract


def _result(config: Config, starts: dict[str, float], times: dict[str, Timing], filling: float) -> Result:
    kinds = ("cached", "computed", "decoded", "extractor")
    cached, computed, decoded, extractor = (times[name].median for name in kinds)
    rows = [
        {"what": "epoch, images decoded s", "seconds": decoded, "ratio": computed / decoded,
         "spread": times["decoded"].spread},
        {"what": "epoch, features computed s", "seconds": computed, "ratio": 1.0, "spread": times["computed"].spread},
        {"what": "epoch, both cached s", "seconds": cached, "ratio": computed / cached,
         "spread": times["cached"].spread},
        {"what": "floor: computed without extractor s", "seconds": computed - extractor,
         "ratio": computed / (computed - extractor), "spread": times["extractor"].spread},
        {"what": "first step, cold caches", "seconds": starts["cold"], "ratio": 1.0, "spread": 0.0},
        {"what": "first step, warm caches", "seconds": starts["warm"], "ratio": starts["cold"] / starts["warm"],
         "spread": 0.0},
    ]  # fmt: skip
    measured = (
        f"Seconds of a training epoch of {config.backbone.backbone} with {config.adapter.format.name}, batch "
        f"{config.data.batch_size}, with extractor features (cache_features) and decoded images (keep_images) at "
        "hand, and with one of them made at each step; ratios are to features computed. And seconds from the command "
        "metalora train --workers 0 to its first step, with an empty METALORA_CACHE and a filled one."
    )
    floor = "of a cached epoch: the computed one less the time of the extractor alone on as many images."
    saved = computed - cached
    facts = {
        "filling the cache s": filling,
        "epochs until it pays": filling / saved if saved > 0 else None,
        "epoch ratio": computed / cached,
        "images ratio": decoded / cached,
        "start ratio": starts["cold"] / starts["warm"],
    }
    return Result("cache", measured, floor, rows, facts)
