"""One MLflow run, written by the process that drives the training."""

import hashlib
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
from typing import Any

from filelock import FileLock

from metalora.errors import UserError, given_as, one_line
from metalora.places import sqlite_file
from metalora.redact import redact, redact_uri
from metalora.tracking.tracker import Record

TIMEOUT_SECONDS = 5


RETRY_SECONDS = 30.0


METRICS_PER_CALL = 1000


MIGRATION_SECONDS = 120  # that another process may take to make the tables of a new store


LONGEST_METRIC = 250


LONGEST_PARAM = 6000


REFUSALS = (400, 404, 413, 422)  # statuses by which a server says that asking again is useless


CHAMPION = "champion"


_DOMAIN = re.compile(r"^[\w/]*/knn\d+(_weighted)?/")  # what stands before it


class MlflowTracker:
    """Tracks one training in one MLflow run.

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
        self.refused: dict[str, str] = {}  # metric: why the server will never take it
        self.lost_at: float | None = None

    def start(
        self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None, missed: Iterable[Record]
    ) -> str:
        """Make the run or continue ``run_id``, and send the metrics that it has missed.

        Raises:
            UserError: the server does not answer (after at most 15 s), or does not know the run.
        """
        _be_quick()
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        try:
            self._open(params, tags, run_id)
            self.queue = list(missed) if run_id is None else self._unsent(missed)
        except Exception as error:  # MLflow, SQLAlchemy and requests each have their own
            raise UserError(
                f"MLflow at {redact_uri(self.uri)!r} cannot be used: {_reason(error)} "
                f"(set tracking_uri to another address, or to none){given_as('tracking_uri')}"
            ) from None
        self._send()
        return self.run_id

    def metrics(self, record: Record) -> None:
        """Send metrics, or keep them for later if the server cannot be reached."""
        self.queue.append(record)
        if self.lost_at is None or time.monotonic() - self.lost_at > RETRY_SECONDS:
            self._send()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, or a folder's files, into ``folder``."""
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), folder or path.name)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self.client.set_tag(self.run_id, name, value)

    def model(self, files: Mapping[str, Path], networks: Mapping[str, Any], name: str = "") -> None:
        """Log an MLflow model: `served_model` as code, files and networks as artifacts; nothing is pickled.

        Args:
            files: ``adapter``, the adapter's folder, and ``config``, the run's settings.
            networks: ``backbone`` and, if it is another network, ``extractor``.
            name: Name to register the model under, as the version with the alias `CHAMPION`.
        """
        import mlflow

        from metalora.tracking import served_model

        package = Path(served_model.__file__).parents[1]
        with tempfile.TemporaryDirectory() as scratch:
            artifacts = {part: str(path) for part, path in files.items()}
            for part, network in networks.items():
                artifacts[part] = f"{scratch}/{part}.safetensors"
                served_model.write_network(network, artifacts[part])
            mlflow.set_tracking_uri(self.uri)
            mute = redirect_stderr(io.StringIO())  # it announces each version that it registers
            with mlflow.start_run(run_id=self.run_id), warnings.catch_warnings(), mute:
                warnings.simplefilter("ignore")  # it would infer a signature from the example, beside ours
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    registered_model_name=name or None,
                    python_model=served_model.__file__,
                    artifacts=artifacts,
                    code_paths=[str(package)],
                    signature=served_model.signature(),
                    input_example=served_model.example(),
                    pip_requirements=served_model.requirements(),
                )
        if name:
            self.client.set_registered_model_alias(name, CHAMPION, str(logged.registered_model_version))

    def finish(self, status: str) -> None:
        """Send all waiting metrics, and end the run.

        Raises:
            ConnectionError: the server cannot be reached, and something was not sent.
            UserError: the run has ended, but the server refused metrics; they are in the run's ``metrics.jsonl``.
        """
        self._send()
        try:
            if self.queue:
                raise ConnectionError(f"{len(self.queue)} records were not sent")
            self.client.set_terminated(self.run_id, status)
        except Exception as error:  # as in `start`
            raise ConnectionError(f"MLflow at {redact_uri(self.uri)!r} cannot be reached: {_reason(error)}") from None
        if self.refused:
            name, reason = next(iter(self.refused.items()))
            raise UserError(
                f"MLflow at {redact_uri(self.uri)!r} refused {len(self.refused)} metrics for good, the first {name!r}: "
                f"{reason} (all are in metrics.jsonl)"
            )

    def where(self) -> str:
        """Return how to open the run: its web address, or a command."""
        uri = redact_uri(self.uri)
        if uri.startswith("http"):
            return f"{uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {uri}   (experiment {self.experiment}, run {self.run_name})"

    def _open(self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None) -> None:
        from mlflow.entities import Param

        self.client = _client(self.uri)
        self.experiment_id = _experiment(self.client, self.experiment)
        if run_id is not None:
            self.run_id = self.client.get_run(run_id).info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        run = self.client.create_run(self.experiment_id, tags=dict(tags), run_name=self.run_name)
        self.run_id = run.info.run_id
        self.client.log_batch(self.run_id, params=[Param(k, str(v)[:LONGEST_PARAM]) for k, v in params.items()])

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
        """Send the waiting records as far as the server accepts them; set aside those that it never will."""
        while self.queue:
            try:
                self._send_record(self.queue[0])
            except Exception:  # whatever it was, the training must not end of it; `finish` tells
                self.lost_at = time.monotonic()
                return
            self.queue.pop(0)
        self.lost_at = None

    def _send_record(self, record: Record) -> None:
        from mlflow.entities import Metric

        step, when, values = record
        batch = [Metric(metric_name(name), value, round(when * 1000), step) for name, value in values.items()]
        for start in range(0, len(batch), METRICS_PER_CALL):
            part = batch[start : start + METRICS_PER_CALL]
            try:
                self.client.log_batch(self.run_id, metrics=part)
            except Exception as error:
                if not _is_refusal(error):
                    raise
                for metric in part:  # all but those that the server minds
                    self._send_alone(metric)

    def _send_alone(self, metric: Any) -> None:
        try:
            self.client.log_batch(self.run_id, metrics=[metric])
        except Exception as error:
            if not _is_refusal(error):
                raise
            self.refused.setdefault(metric.key, _reason(error))


def metric_name(name: str) -> str:
    """Return a metric's name as MLflow accepts it: a domain may be called ``https://a.b``, or have 300 letters.

    A name that MLflow accepts stays. In any other name, characters that MLflow does not accept become ``_``, the end is
    cut off if it is too long, and a hash of the domain follows (the same one in all its metrics). So different names
    stay different.
    """
    plain = re.sub(r"[^\w\-. /]", "_", name)
    plain = "/".join(part if part.strip(". ") else "_" for part in plain.split("/"))
    if plain == name and len(name) <= LONGEST_METRIC:
        return name
    domain = _DOMAIN.sub("", name)
    digest = hashlib.blake2b(domain.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{plain[: LONGEST_METRIC - len(digest) - 1]}-{digest}"


def _client(uri: str) -> Any:
    """Return MLflow's client of a store, whose tables are made if it is new, by one process at a time."""
    from mlflow import MlflowClient

    asked = logging.getLogger("metalora").level  # what is asked of this project's messages holds for MLflow's
    logging.getLogger("mlflow").setLevel(asked or logging.ERROR)  # by itself it announces each table it creates
    file = sqlite_file(uri)
    if file is None:
        return MlflowClient(tracking_uri=uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = file.with_name(f".{file.name}.lock")
    with FileLock(lock, timeout=MIGRATION_SECONDS):
        client = MlflowClient(tracking_uri=uri)
        lock.unlink(missing_ok=True)  # those who wait for it see that, and begin anew
    return client


def _experiment(client: Any, name: str) -> str:
    """Return the id of an experiment, made if there is none of that name."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except Exception:
            found = client.get_experiment_by_name(name)  # another process may have been faster
            if found is None:
                raise
    return str(found.experiment_id)


def _is_refusal(error: Exception) -> bool:
    """Tell whether a server has refused a request for good, so that repeating it is useless."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and int(error.get_http_status_code()) in REFUSALS  # type: ignore[no-untyped-call]


def _be_quick() -> None:
    """Tell MLflow not to wait for minutes, before a training that nobody has started yet."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_SECONDS))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def _reason(error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return redact(one_line(Exception(first), longest=160))
