"""What is added to, and fetched from, runs that have ended."""

from collections.abc import Iterable
from pathlib import Path

from metalora.errors import UserError
from metalora.redact import redact_uri
from metalora.tracking.build import tracking_address
from metalora.tracking.mlflow_tracker import _be_quick, _client, _reason


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
    _be_quick()
    try:
        client = _client(uri)
        for path in paths:
            client.log_artifact(run_id, str(path), folder)
    except Exception as error:  # MLflow, SQLAlchemy and requests each have their own
        raise UserError(f"MLflow at {redact_uri(uri)!r} did not take the files: {_reason(error)}") from None


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
    uri = tracking_address(uri)
    mlflow.set_tracking_uri(uri)
    try:
        _client(uri)
        mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=str(folder))
    except Exception as error:  # as in `MlflowTracker.start`
        raise UserError(f"model {model!r} cannot be had from MLflow at {redact_uri(uri)!r}: {_reason(error)}") from None
    found = next(folder.rglob("config.yaml"), None)
    if found is None:
        raise UserError(f"model {model!r} is none that metalora has logged: it has no config.yaml")
    return found.parent
