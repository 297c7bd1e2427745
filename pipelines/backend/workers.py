"""Training on Ray Train: the driver's part."""

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from metalora.config import Config, to_dict
from metalora.errors import UserError
from metalora.files import atomic_file
from metalora.models.backbones.base import Backbone
from metalora.models.initial import Initial
from metalora.redact import redact
from metalora.train.kept import Decoded
from metalora.train.reporter import Progress
from pipelines.backend.cluster import cluster, gpus_per_worker, room_for_images
from pipelines.backend.mailbox import Courier, Event, Failure, Mailbox, Message, Metrics
from pipelines.backend.prepare import Prepared
from pipelines.backend.ray_checkpoints import RAY_STATE, drop_unusable, opened
from pipelines.backend.worker import WorkerArguments, train_rank
from pipelines.run.folder import ERROR, last_line
from pipelines.run.log import RunLog
from pipelines.surroundings import handle
from pipelines.verbosity import log_level

TRAIN_POLL_SECONDS = "0.2"


@contextmanager
def train_on_ray(prepared: Prepared, log: RunLog, folder: Path, resume: Path | None) -> Iterator[Path]:
    """Train on the cluster of this run's settings, which is up while the context is open.

    Args:
        prepared: Settings and networks.
        log: Records the workers' reports.
        folder: As for `run_on_ray`.
        resume: As for `run_on_ray`.

    Yields:
        The folder of the last checkpoint, with the results in it.

    Raises:
        UserError: the training fails; see `run_on_ray`.
    """
    with cluster(prepared.config.cluster):
        mailbox = Mailbox()
        with Courier(mailbox, partial(_record, log), log.say):
            last = run_on_ray(
                prepared.config,
                prepared.networks,
                mailbox,
                folder,
                resume,
                decoded=_stored(prepared.decoded),
            )
        with last as results:
            yield results


def _stored(decoded: Decoded | None) -> Any:
    """Put decoded samples into Ray's object store, if there is room."""
    return ray.put(decoded) if decoded is not None and decoded.codes.nbytes <= room_for_images() else None


def _record(log: RunLog, event: Event) -> None:
    match event.content:
        case Progress():
            log.progress(event.content)
        case Metrics(step, values):
            log.metrics(step, values)
        case Message(text):
            log.say(text)
        case Failure():
            pass  # it ends the training, and is told by who waits for that


def run_on_ray(
    config: Config,
    networks: tuple[Backbone, Backbone | None, Initial | None],
    mailbox: Mailbox,
    folder: Path,
    resume: Path | None,
    shared: Any = None,
    decoded: Any = None,
) -> AbstractContextManager[Path]:
    """Train with Ray Train workers.

    Args:
        config: All settings.
        networks: Backbone, extractor (None if it is the backbone) and initial adapter (None if there is none), built
            and read by the driver; Ray's object store brings them to the workers.
        mailbox: The mailbox to which the workers report, under the folder's name.
        folder: The run's folder; its name is the Ray Train run's name, by which Ray finds an earlier part of it.
        resume: A checkpoint to resume from, if Ray has no checkpoint of its own.
        shared: Results that were computed once for several trainings, in Ray's object store.
        decoded: The samples that the driver has decoded, in Ray's object store; None: the workers decode them.

    Returns:
        The folder of the last checkpoint, with the results in it, while the context is open.

    Raises:
        UserError: a worker meets an error that a user can mend, or workers are lost more often than ``retries``.
    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    arguments: WorkerArguments = {
        "config": ray.put(to_dict(config)),  # not the settings themselves: Ray's dashboard shows these arguments
        "networks": ray.put(networks),
        "mailbox": mailbox,
        "name": folder.name,
        "resume": str(resume.resolve()) if resume else None,
        "shared": shared,
        "decoded": decoded,
        "log_level": log_level(),
    }
    drop_unusable(folder / RAY_STATE)
    trainer = _trainer(config, arguments, folder)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except SystemExit:
        raise KeyboardInterrupt from None  # Ray Train's handler of SIGINT ends the process
    except TrainingFailedError as error:
        raise UserError(mailbox.failure(folder.name) or _reason(error, folder / ERROR)) from None
    finally:
        handle(signal.SIGINT, interrupt)
    failure = mailbox.failure(folder.name)
    if failure:
        raise UserError(failure)
    return opened(result.checkpoint)


def _trainer(config: Config, arguments: WorkerArguments, folder: Path) -> Any:
    """Make Ray Train's trainer; its workers take GPUs if there are enough of them."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    settings = config.cluster
    gpus, there = gpus_per_worker(settings), ray.cluster_resources().get("GPU", 0)
    if there and not gpus and settings.gpus_per_worker is None:
        said = f"{settings.workers} workers, {there:g} GPUs: training on CPUs (--workers {there:g} uses the GPUs)"
        arguments["mailbox"].post(Event(folder.name, Message(said)))
    # Ray Train asks its workers for news every 2 s, and until then a rank waits with its next checkpoint.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", TRAIN_POLL_SECONDS)
    return TorchTrainer(
        train_rank,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": settings.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name=folder.name,
            storage_path=settings.storage_path or str(folder.parent.resolve()),
            failure_config=FailureConfig(max_failures=settings.retries),
            checkpoint_config=CheckpointConfig(num_to_keep=config.train.keep_checkpoints),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _reason(error: Exception, file: Path) -> str:
    """Return the line that says why the workers failed; the whole story goes into a file."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    first = next(iter(failures.values()))
    story = "\n\n".join(f"worker {rank}: {failure}" for rank, failure in failures.items())
    with atomic_file(file) as temporary:
        temporary.write_text(redact(story), encoding="utf-8")
    return f"the training failed: {last_line(str(first) or type(first).__name__)} (in full: {file})"
