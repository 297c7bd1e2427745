"""One worker of Ray Train: the training of one rank."""

import logging
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import ray

from metalora.build import build_model, build_trainer
from metalora.config import from_dict
from metalora.data import load_table
from metalora.data.loaders import count_loader_workers
from metalora.errors import UserError
from metalora.group import Group
from metalora.train.checkpoint import PREFIX, whole
from pipelines.backend.mailbox import Mailbox
from pipelines.backend.ray_checkpoints import opened
from pipelines.backend.reporter import MailReporter
from pipelines.surroundings import keep_compiled
from pipelines.verbosity import log_from


class WorkerArguments(TypedDict):
    """The arguments of every worker.

    Attributes:
        config: The settings in Ray's object store, as `metalora.config.to_dict` returns them.
        networks: Backbone, extractor and initial adapter in Ray's object store.
        mailbox: The driver's mailbox.
        name: Name of the run or trial, under which the workers report.
        resume: Folder of a checkpoint to resume from, if Ray has no checkpoint of its own.
        shared: A `Shared` in Ray's object store; None: nothing was computed beforehand.
        decoded: A `Decoded` in Ray's object store; None: the workers decode the samples.
        log_level: Level from which log messages are wanted; None: as usual.
    """

    config: Any
    networks: Any
    mailbox: Mailbox
    name: str
    resume: str | None
    shared: Any
    decoded: Any
    log_level: int | None


def train_rank(arguments: WorkerArguments) -> None:
    """Train on one rank; Ray Train calls this in every worker process."""
    keep_compiled()
    from ray import train
    from ray.train.torch import get_device

    logging.getLogger().setLevel(logging.WARNING)  # Ray Train announces each report, whatever its own log level
    log_from(arguments["log_level"])
    mailbox, name = arguments["mailbox"], arguments["name"]
    # A restart after an error that no restart mends: end in peace, the driver has the message.
    if mailbox.failure(name):
        return
    reporter = MailReporter(mailbox, name, keep)
    try:
        config = from_dict(ray.get(arguments["config"]))
        group = Group.current(get_device())
        table = load_table(config.data)
        if len(set(group.gather_objects(table.fingerprint))) > 1:
            raise UserError(f"data {config.data.data!r}: the workers' nodes do not have the same images")
        backbone, extractor, initial = ray.get(arguments["networks"])
        model = build_model(config, backbone, extractor, table.labels, initial).to(group.device)
        workers = count_loader_workers(config.data.loader_workers, config.cluster.cpus_per_worker)
        shared = arguments["shared"] and ray.get(arguments["shared"])
        decoded = arguments["decoded"] and ray.get(arguments["decoded"])
        trainer = build_trainer(config, model, table, backbone.inputs, group, reporter, workers, shared, decoded)
        checkpoint = train.get_checkpoint()
        if checkpoint is None:
            trainer.fit(Path(arguments["resume"]) if arguments["resume"] else None)
        else:
            with opened(checkpoint) as folder:
                trainer.fit(whole(folder, reporter.say if group.first else _say_nothing))
    except UserError as error:
        reporter.fail(str(error))
        logging.disable(logging.ERROR)  # the driver says it in one line; Ray Train would print its traceback
        raise


def keep(step: int, folder: Path | None) -> None:
    """Report a checkpoint to Ray Train, which keeps rank 0's files in the run's storage."""
    from ray import train

    report = partial(train.report, {"step": step}, checkpoint_dir_name=f"{PREFIX}{step:08d}")
    if folder is None:
        report()
    else:
        report(checkpoint=train.Checkpoint.from_directory(folder))


def _say_nothing(text: str) -> None:
    """Take a message that another rank tells."""
