"""Training on Ray Train: the driver's end, and what the workers do."""

import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, Protocol

import ray
from typing_extensions import TypedDict

from metalora.build import build_model
from metalora.config import Config, from_dict, to_dict
from metalora.data import load_table
from metalora.data.loaders import count_loader_workers
from metalora.errors import UserError
from metalora.files import atomic_file
from metalora.group import Group
from metalora.models.backbones.base import Backbone
from metalora.reading import read_json
from metalora.redact import redact
from metalora.train.checkpoint import PREFIX, CheckpointFolder, whole
from metalora.train.reporter import Progress, Write
from metalora.train.trainer import Trainer
from pipelines.backend.cluster import gpus_per_worker
from pipelines.backend.mailbox import new_board
from pipelines.run.folder import ERROR

POLL_SECONDS = 0.3
RAY_STATE = "checkpoint_manager_snapshot.json"
TRAIN_POLL_SECONDS = "0.2"


class Hearer(Protocol):
    """Takes what the workers of a training report: a `Listener`, or the trial that the training is."""

    def progress(self, progress: Progress) -> None:
        """Take note of the progress."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take metrics."""

    def say(self, text: str) -> None:
        """Take a message to the user."""


class RayReporter:
    """The reporter of a Ray Train worker.

    Args:
        board: The driver's board.
    """

    def __init__(self, board: Any) -> None:
        self.board = board

    def progress(self, progress: Progress) -> None:
        """Leave the progress on the board."""
        self.board.push.remote("progress", progress)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Leave metrics on the board."""
        self.board.push.remote("metrics", step, dict(values))

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Report to Ray Train, which keeps rank 0's files in the run's storage."""
        from ray import train

        name = f"{PREFIX}{step:08d}"
        if write is None:
            train.report({"step": step}, checkpoint_dir_name=name)
            return
        with checkpoint_failure(step), tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            checkpoint = train.Checkpoint.from_directory(folder)
            train.report({"step": step}, checkpoint=checkpoint, checkpoint_dir_name=name)


@contextmanager
def checkpoint_failure(step: int) -> Iterator[None]:
    """Say in one line that a checkpoint could not be written (a full disk).

    Raises:
        UserError: so it was.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the checkpoint of step {step} could not be written: {reason}") from None


def run_on_ray(
    config: Config,
    backbone: Backbone,
    extractor: Backbone | None,
    listener: Hearer,
    folder: Path,
    resume: Path | None,
    shared: Any = None,
) -> AbstractContextManager[Path]:
    """Train with Ray Train workers.

    Args:
        config: All settings.
        backbone: Built by the driver; its weights travel to the workers through Ray's object store.
        extractor: Likewise.
        listener: Takes the reports.
        folder: The run's folder; its name is the Ray Train run's name, under which Ray finds an earlier part of it.
        resume: A checkpoint to go on from, if Ray has none of its own.
        shared: In Ray's object store: what has been computed for this and other trainings.

    Returns:
        The folder of the last checkpoint, with the results in it, while the context is open.

    Raises:
        UserError: what the workers say that a user can mend, or workers lost more often than ``retries``.
    """
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    settings = config.cluster
    gpus, there = gpus_per_worker(settings), ray.cluster_resources().get("GPU", 0)
    if there and not gpus and settings.gpus_per_worker is None:
        listener.say(
            f"{settings.workers} workers, {there:g} GPUs: training on CPUs (--workers {there:g} uses the GPUs)"
        )
    # Ray Train asks its workers for news every 2 s, and until then a rank waits with its next checkpoint.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", TRAIN_POLL_SECONDS)
    board = new_board()
    arguments = {
        "config": ray.put(to_dict(config)),  # not the settings themselves: Ray's dashboard shows these arguments
        "networks": ray.put((backbone, extractor)),
        "board": board,
        "resume": resume and str(resume.resolve()),
        "shared": shared,
    }
    drop_unusable(folder / RAY_STATE)
    trainer = TorchTrainer(
        _worker,
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
    with _Courier(board, listener):
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise UserError(ray.get(board.failed.remote()) or _reason(error, folder / ERROR)) from None
    failure = ray.get(board.failed.remote())
    if failure:
        raise UserError(failure)
    return opened(result.checkpoint)


class _Result(TypedDict):
    checkpoint_dir_name: str


class _RayState(TypedDict):
    """The form of Ray Train's note of its checkpoints, as far as its names are concerned."""

    ray_version: str
    checkpoint_results: list[_Result]
    latest_checkpoint_result: NotRequired[_Result | None]
    pending_training_results: list[_Result]


def drop_unusable(state: Path) -> None:
    """Remove Ray Train's note of its checkpoints unless this Ray can go on with it; ours are found without it.

    A full disk may have cut it off, and a stranger's may name folders elsewhere, which Ray would remove as old ones.
    """
    if not os.path.lexists(state):
        return
    try:
        note: _RayState = read_json(state, f"Ray's note {state}", _RayState)
        results = [*note["checkpoint_results"], *note["pending_training_results"], note.get("latest_checkpoint_result")]
        names = [result["checkpoint_dir_name"] for result in results if result is not None]
        there = {path.name for path in CheckpointFolder(state.parent).all()}
        usable = not state.is_symlink() and note["ray_version"] == ray.__version__ and set(names) <= there
    except UserError:
        usable = False
    if not usable:
        state.unlink()


@contextmanager
def opened(checkpoint: Any) -> Iterator[Path]:
    """Bring one of Ray's checkpoints to this machine, and yield its folder."""
    with checkpoint.as_directory() as folder:
        yield Path(folder)


class _Courier:
    """Carries the board's events to the listener, in a thread, while the driver waits for Ray Train."""

    def __init__(self, board: Any, listener: Hearer) -> None:
        self.board = board
        self.listener = listener
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.done.set()
        self.thread.join()
        self._carry()

    def _run(self) -> None:
        while not self.done.wait(POLL_SECONDS):
            self._carry()

    def _carry(self) -> None:
        for kind, content in ray.get(self.board.pull.remote()):
            getattr(self.listener, kind)(*content)


def _worker(arguments: dict[str, Any]) -> None:
    """Train on one rank: what Ray Train calls in every worker process."""
    from ray import train
    from ray.train.torch import get_device

    logging.getLogger().setLevel(logging.WARNING)  # Ray Train announces each report, whatever its own log level
    board = arguments["board"]
    # A restart after an error that no restart mends: end in peace, the driver has the message.
    if ray.get(board.failed.remote()):
        return
    try:
        config = from_dict(ray.get(arguments["config"]))
        group = Group.current(get_device())
        table = load_table(config.data)
        if len(set(group.gather_objects(table.fingerprint))) > 1:
            raise UserError(f"data {config.data.data!r}: the workers' nodes do not hold the same images")
        backbone, extractor = ray.get(arguments["networks"])
        model = build_model(config, backbone, extractor, table.labels).to(group.device)
        workers = count_loader_workers(config.data.loader_workers, config.cluster.cpus_per_worker)
        shared = arguments["shared"] and ray.get(arguments["shared"])
        trainer = Trainer(config, model, table, backbone.preprocess, group, RayReporter(board), workers, shared)
        checkpoint = train.get_checkpoint()
        if checkpoint is None:
            trainer.fit(Path(arguments["resume"]) if arguments["resume"] else None)
        else:
            with opened(checkpoint) as folder:
                trainer.fit(whole(folder, partial(board.push.remote, "say") if group.first else _say_nothing))
    except UserError as error:
        ray.get(board.fail.remote(str(error)))
        logging.disable(logging.ERROR)  # the driver says it in one line; Ray Train would print its traceback
        raise


def _say_nothing(text: str) -> None:
    """Take a message that another rank tells."""


def _reason(error: Exception, file: Path) -> str:
    """Return the line that says why the workers failed; the whole story goes into a file."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = [line for line in str(next(iter(failures.values()))).splitlines() if line.strip()]
    story = "\n\n".join(f"worker {rank}: {failure}" for rank, failure in failures.items())
    with atomic_file(file) as temporary:
        temporary.write_text(redact(story), encoding="utf-8")
    return f"the training failed: {lines[-1].strip() if lines else type(error).__name__} (in full: {file})"
