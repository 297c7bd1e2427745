"""Run one trial of a campaign: an ordinary training that reports to Ray Tune and to the campaign's mailbox.

A trial with one worker trains in Tune's own process, which the next trial takes over with its libraries loaded. A
trial with several workers drives Ray Train; it takes no CPU, so that it cannot keep its own workers waiting.
"""

import gc
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from metalora.build import build_model, build_trainer
from metalora.config import Config
from metalora.data import load_table
from metalora.data.loaders import count_loader_workers
from metalora.errors import UserError
from metalora.group import Group
from metalora.train.checkpoint import whole
from metalora.train.kept import Decoded
from metalora.train.reporter import Progress
from metalora.train.shared import compute_shared
from pipelines.backend.device import this_device
from pipelines.backend.mailbox import Courier, Event, Mailbox, Metrics
from pipelines.backend.ray_checkpoints import opened
from pipelines.backend.reporter import MailReporter
from pipelines.backend.workers import run_on_ray
from pipelines.campaign.plan import Plan
from pipelines.campaign.trials import PARAMETERS, STEP_SECONDS, TrialSpec
from pipelines.surroundings import keep_compiled
from pipelines.verbosity import log_from

THREAD_SECONDS = 600


@dataclass(frozen=True)
class Materials:
    """The objects that every trial of a campaign gets.

    Attributes:
        plan: The plan of the campaign.
        mailbox: The mailbox to which trials report.
        networks: Backbone, extractor and initial adapter in Ray's object store.
        shared: A `Shared` in Ray's object store.
        checkpoints: Checkpoints to resume from, by the name of a trial that an earlier part of the campaign began.
        storage: Folder or URI for the checkpoints of nested trainings.
        folder: Folder for the error reports of nested trainings.
        log_level: Level from which log messages are wanted; None: as usual.
    """

    plan: Plan
    mailbox: Mailbox
    networks: Any
    shared: Any
    checkpoints: Mapping[str, str]
    storage: str
    folder: Path
    log_level: int | None = None


class TrialReporter:
    """Reports a trial to Ray Tune.

    A validation is reported together with the checkpoint that follows it, so that a trial that is stopped for its
    metrics has a checkpoint.

    Args:
        batch_size: Images per optimizer step.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.epoch = 0
        self.result: dict[str, float] = {}
        self.unreported = False

    def listen(self, event: Event) -> None:
        """Take the values for Tune from an event of the trial."""
        match event.content:
            case Progress():
                self._progress(event.content)
            case Metrics():
                self._metrics(event.content.values)

    def checkpoint(self, step: int, folder: Path | None) -> None:
        """Report a checkpoint to Tune, with the present values."""
        assert folder is not None, "a trial of one process is rank 0"
        self.deliver(folder)

    def deliver(self, folder: Path) -> None:
        """Report the folder of a checkpoint to Tune."""
        self._report(tune.Checkpoint.from_directory(str(folder)))

    def _progress(self, progress: Progress) -> None:
        if progress.epoch:
            self.epoch = progress.epoch
            if self.unreported and progress.phase == "train" and progress.epoch > self.result["epoch"]:
                self._report(None)  # no checkpoint has followed the validation

    def _metrics(self, values: Mapping[str, float]) -> None:
        if PARAMETERS in values:
            self.result[PARAMETERS] = values[PARAMETERS]
        if "train/images_per_second" in values:
            self.result[STEP_SECONDS] = self.batch_size / values["train/images_per_second"]
        if any(name.startswith("val/") for name in values):
            self.result.update(values, epoch=self.epoch)
            self.unreported = True

    def _report(self, checkpoint: Any) -> None:
        self.unreported = False
        tune.report(dict(self.result), checkpoint=checkpoint)


def run_trial(config: Mapping[str, Any], materials: Materials) -> None:
    """Run a trial; Ray Tune calls this. An error that a user can mend ends it with a message, without a restart."""
    keep_compiled()
    for name in (None, "ray"):  # Ray announces each checkpoint
        logging.getLogger(name).setLevel(logging.WARNING)
    log_from(materials.log_level)
    # Read when the next trial takes this process over: Tune gives that one up if the thread of this one is not gone by
    # then, and 2 s are not enough on a busy machine.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", str(THREAD_SECONDS))
    trial: TrialSpec = config["trial"]
    settings = materials.plan.trial_config(trial)
    told = TrialReporter(settings.data.batch_size)
    reporter = MailReporter(materials.mailbox, trial.name, told.checkpoint, told.listen)
    try:
        with _checkpoint(materials, trial) as checkpoint:
            resume = checkpoint and whole(checkpoint, reporter.say)
            if settings.cluster.workers > 1:
                _nested(settings, materials, reporter, told, resume)
            else:
                _alone(settings, materials, reporter, resume)
    except UserError as error:
        reporter.fail(str(error))
    finally:
        gc.collect()  # the process goes on with another trial
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@ray.remote  # type: ignore[untyped-decorator]
def share(
    plan: Plan,
    networks: Any,
    mailbox: Mailbox,
    keep_images: bool,
    kinds: list[str],
    decoded: Decoded | None = None,
) -> Any:
    """Compute what all trials share, on the resources of one trial.

    Args:
        plan: The plan of the campaign.
        networks: Backbone, extractor and initial adapter.
        mailbox: Gets the progress.
        keep_images: Whether to keep the images' pixels.
        kinds: Every ``extractor_features`` that a trial may ask for.
        decoded: The samples of the table, if they were decoded before.
    """
    keep_compiled()
    backbone, extractor, _ = networks
    table = load_table(plan.config.data)
    device = this_device(bool(ray.get_gpu_ids()))
    models = {}
    for kind in kinds or ["stats"]:
        point = {"format": "cp", "extractor_features": kind} if kinds else {"format": "lora"}
        settings = plan.trial_config(TrialSpec(0, {**point, "rank": 1, "parameter_budget": None}, 0, "shared"))
        models[kind] = build_model(settings, backbone, extractor, ()).to(device)
    reporter = MailReporter(mailbox, "shared")
    workers = _loader_workers(plan.config)
    return compute_shared(
        plan.config, models, table, backbone.inputs, Group(device), reporter, workers, keep_images, decoded
    )


def _alone(settings: Config, materials: Materials, reporter: MailReporter, resume: Path | None) -> None:
    """Train in this process."""
    backbone, extractor, initial = ray.get(materials.networks)
    table = load_table(settings.data)
    device = this_device(bool(ray.get_gpu_ids()))
    model = build_model(settings, backbone, extractor, table.labels, initial).to(device)
    reporter.metrics(0, {PARAMETERS: float(model.count_parameters()[0])})
    build_trainer(
        settings,
        model,
        table,
        backbone.inputs,
        Group(device),
        reporter,
        _loader_workers(settings),
        ray.get(materials.shared),
    ).fit(resume)


def _nested(
    settings: Config, materials: Materials, reporter: MailReporter, told: TrialReporter, resume: Path | None
) -> None:
    """Train on workers of Ray Train: they post to the campaign's mailbox, where this process reads along for Tune."""
    networks = backbone, extractor, initial = ray.get(materials.networks)
    labels = load_table(settings.data).labels
    model = build_model(settings, backbone, extractor, labels, initial)
    reporter.metrics(0, {PARAMETERS: float(model.count_parameters()[0])})
    folder = materials.folder / reporter.name
    folder.mkdir(parents=True, exist_ok=True)
    settings = replace(settings, cluster=replace(settings.cluster, storage_path=materials.storage))
    mailbox = materials.mailbox
    with Courier(mailbox, told.listen, reporter.say, reader=reporter.name):
        last = run_on_ray(settings, networks, mailbox, folder, resume, materials.shared)
    with last as results:
        told.deliver(results)


def _checkpoint(materials: Materials, trial: TrialSpec) -> AbstractContextManager[Path | None]:
    """Open the checkpoint that the trial resumes from, if there is one."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None and trial.name in materials.checkpoints:
        checkpoint = tune.Checkpoint(materials.checkpoints[trial.name])
    return nullcontext() if checkpoint is None else opened(checkpoint)


def _loader_workers(settings: Config) -> int:
    return count_loader_workers(settings.data.loader_workers, settings.cluster.cpus_per_worker)
