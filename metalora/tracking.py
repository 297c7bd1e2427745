"""MLflow, and a tracker that tracks nothing. Names as DESIGN section 5 has them.

One process writes to a run: the one that drives the training. A server that goes away in the middle does not stop the
training: what it missed waits in memory, and in the run's ``metrics.jsonl`` for a later ``--resume``.
"""

import io
import logging
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Protocol

from metalora.config import Config, to_dict
from metalora.errors import UserError

TIMEOUT_SECONDS = 5
RETRY_SECONDS = 30.0
METRICS_PER_CALL = 1000
CHAMPION = "champion"

Record = tuple[int, float, Mapping[str, float]]  # step, Unix time in seconds, values


class Tracker(Protocol):
    """Where a run's story is told."""

    def start(
        self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None, missed: Iterable[Record]
    ) -> str | None:
        """Begin or continue a run; return its id."""

    def metrics(self, record: Record) -> None:
        """Record metrics."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or all files of a folder."""

    def tag(self, name: str, value: str) -> None:
        """Tag the run."""

    def model(self, files: Mapping[str, Path], networks: Mapping[str, Any], name: str = "") -> None:
        """Keep an adapter, with the networks it needs, as a model that can be loaded and served."""

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""

    def where(self) -> str:
        """Say how to look at the run."""


class NullTracker:
    """Tracks nothing."""

    def start(
        self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None, missed: Iterable[Record]
    ) -> None:
        """Do nothing."""

    def metrics(self, record: Record) -> None:
        """Do nothing."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Do nothing."""

    def tag(self, name: str, value: str) -> None:
        """Do nothing."""

    def model(self, files: Mapping[str, Path], networks: Mapping[str, Any], name: str = "") -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""

    def where(self) -> str:
        """Say that nothing was tracked."""
        return "not tracked (tracking_uri = none)"


class MlflowTracker:
    """One MLflow run.

    Args:
        uri: Tracking URI.
        experiment: Experiment name; made if it does not exist.
        run_name: Name of the run.
    """

    def __init__(self, uri: str, experiment: str, run_name: str) -> None:
        self.uri = uri
        self.experiment = experiment
        self.run_name = run_name
        self.run_id = ""
        self.queue: list[Record] = []
        self.lost_at: float | None = None

    def start(
        self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None, missed: Iterable[Record]
    ) -> str:
        """Make the run, or go on with ``run_id``, and send what it has missed.

        Raises:
            UserError: the server does not answer (told within 15 s), or does not know the run.
        """
        _be_quick()
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        try:
            self._open(params, tags, run_id)
            self.queue = list(missed) if run_id is None else self._unsent(missed)
        except Exception as error:  # MLflow, SQLAlchemy and requests each have their own
            raise UserError(
                f"MLflow at {self.uri!r} cannot be used: {_reason(error)} "
                "(tracking_uri names another, 'none' does without)"
            ) from None
        self._send()
        return self.run_id

    def metrics(self, record: Record) -> None:
        """Send metrics, or keep them for later if the server is away."""
        self.queue.append(record)
        if self.lost_at is None or time.monotonic() - self.lost_at > RETRY_SECONDS:
            self._send()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file or a folder's files below ``folder``."""
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), folder or path.name)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    def tag(self, name: str, value: str) -> None:
        """Tag the run."""
        self.client.set_tag(self.run_id, name, value)

    def model(self, files: Mapping[str, Path], networks: Mapping[str, Any], name: str = "") -> None:
        """Log an MLflow model: `metalora.mlflow_model` as code, files and networks as artifacts; nothing is pickled.

        Args:
            files: ``adapter``, the adapter's folder, and ``config``, the run's settings.
            networks: ``backbone`` and, if it is another network, ``extractor``.
            name: Register it under this name, as the version with the alias `CHAMPION`.
        """
        import mlflow

        from metalora import mlflow_model

        package = Path(mlflow_model.__file__).parent
        with tempfile.TemporaryDirectory() as scratch:
            artifacts = {part: str(path) for part, path in files.items()}
            for part, network in networks.items():
                artifacts[part] = f"{scratch}/{part}.safetensors"
                mlflow_model.write_network(network, artifacts[part])
            mlflow.set_tracking_uri(self.uri)
            mute = redirect_stderr(io.StringIO())  # it announces each version that it registers
            with mlflow.start_run(run_id=self.run_id), warnings.catch_warnings(), mute:
                warnings.simplefilter("ignore")  # it asks for an input example, beside a signature that says more
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    registered_model_name=name or None,
                    python_model=mlflow_model.__file__,
                    artifacts=artifacts,
                    code_paths=[str(package)],
                    signature=mlflow_model.signature(),
                    pip_requirements=mlflow_model.requirements(),
                )
        if name:
            self.client.set_registered_model_alias(name, CHAMPION, str(logged.registered_model_version))

    def finish(self, status: str) -> None:
        """Send what waits and end the run.

        Raises:
            ConnectionError: the server is away, and something was not sent.
        """
        self._send()
        try:
            if self.queue:
                raise ConnectionError(f"{len(self.queue)} records were not sent")
            self.client.set_terminated(self.run_id, status)
        except Exception as error:  # as in `start`
            raise ConnectionError(f"MLflow at {self.uri!r} is away: {_reason(error)}") from None

    def where(self) -> str:
        """Say how to open the run."""
        if self.uri.startswith("http"):
            return f"{self.uri}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {self.uri}   (experiment {self.experiment}, run {self.run_name})"

    def _open(self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # it announces each table it creates
        self.client = MlflowClient(tracking_uri=self.uri)
        found = self.client.get_experiment_by_name(self.experiment)
        self.experiment_id = found.experiment_id if found else self.client.create_experiment(self.experiment)
        if run_id is not None:
            self.run_id = self.client.get_run(run_id).info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        run = self.client.create_run(self.experiment_id, tags=dict(tags), run_name=self.run_name)
        self.run_id = run.info.run_id
        self.client.log_batch(self.run_id, params=[Param(k, str(v)[:6000]) for k, v in params.items()])

    def _unsent(self, missed: Iterable[Record]) -> list[Record]:
        """Return the records the run does not have; one metric's history tells for all that begin with it."""
        known: dict[str, set[int]] = {}
        unsent = []
        for record in missed:
            step, _, values = record
            name = metric_name(next(iter(values)))
            if name not in known:
                known[name] = {metric.step for metric in self.client.get_metric_history(self.run_id, name)}
            if step not in known[name]:
                unsent.append(record)
        return unsent

    def _send(self) -> None:
        from mlflow.entities import Metric

        while self.queue:
            step, when, values = self.queue[0]
            batch = [Metric(metric_name(name), value, round(when * 1000), step) for name, value in values.items()]
            try:
                for start in range(0, len(batch), METRICS_PER_CALL):
                    self.client.log_batch(self.run_id, metrics=batch[start : start + METRICS_PER_CALL])
            except Exception:  # whatever it was, the training must not end of it; `finish` tells
                self.lost_at = time.monotonic()
                return
            self.queue.pop(0)
        self.lost_at = None


def build_tracker(uri: str, experiment: str, run_name: str) -> Tracker:
    """Make the tracker of a tracking URI ("none": a null tracker).

    Raises:
        UserError: a ``file:`` store, which MLflow no longer has.
    """
    if uri == "none":
        return NullTracker()
    if uri.startswith("file:") or "://" not in uri:
        raise UserError(f"tracking_uri {uri!r}: wanted sqlite:///FILE, http(s)://HOST, a database URI, or none")
    return MlflowTracker(uri, experiment, run_name)


def add_artifacts(uri: str, run_id: str, paths: Iterable[Path], folder: str) -> None:
    """Add files to a run as it is: its status and the time it ended stay.

    Args:
        uri: Tracking URI.
        run_id: The run.
        paths: The files.
        folder: Where among the run's artifacts.

    Raises:
        UserError: the server does not answer, or does not know the run.
    """
    from mlflow import MlflowClient

    _be_quick()
    try:
        client = MlflowClient(tracking_uri=uri)
        for path in paths:
            client.log_artifact(run_id, str(path), folder)
    except Exception as error:  # MLflow, SQLAlchemy and requests each have their own
        raise UserError(f"MLflow at {uri!r} did not take the files: {_reason(error)}") from None


def download_model(model: str, uri: str, folder: Path) -> Path:
    """Fetch the files of a logged model: ``adapter``, ``config.yaml``, ``backbone.safetensors``, ...

    Args:
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``runs:/ID/model``.
        uri: Tracking URI.
        folder: Where to put them.

    Raises:
        UserError: there is no such model, or it is not one of ours.
    """
    import mlflow

    _be_quick()
    mlflow.set_tracking_uri(tracking_address(uri))
    try:
        mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=str(folder))
    except Exception as error:  # as in `MlflowTracker.start`
        raise UserError(f"model {model!r} cannot be had from MLflow at {uri!r}: {_reason(error)}") from None
    found = next(folder.rglob("config.yaml"), None)
    if found is None:
        raise UserError(f"model {model!r} is none that metalora has logged: it has no config.yaml")
    return found.parent


def tracking_address(uri: str) -> str:
    """Return the tracking URI that a setting means."""
    return (os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db") if uri == "default" else uri


def metric_name(name: str) -> str:
    """Return the name with what MLflow does not take (a domain may be called ``a, b``) replaced by ``_``."""
    return re.sub(r"[^\w\-. /]", "_", name) or "_"


def _be_quick() -> None:
    """Tell MLflow not to wait for minutes, before a training that nobody has started yet."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_SECONDS))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def _reason(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first if len(first) <= 160 else f"{first[:160]}..."


def flatten(config: Config) -> dict[str, Any]:
    """Return ``{"section.setting": value}``."""
    return {
        f"{section}.{name}": value for section, settings in to_dict(config).items() for name, value in settings.items()
    }
