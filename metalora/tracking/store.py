"""Add files to runs that have ended, and download models from them."""

import os
from collections.abc import Iterable
from pathlib import Path

from metalora.errors import UserError
from metalora.redact import redact_uri
from metalora.tracking.build import tracking_address
from metalora.tracking.mlflow_tracker import _be_quick, _client, _reason


def add_artifacts(uri: str, run_id: str, paths: Iterable[Path], folder: str) -> None:
    """Add files to a run; its status and its end time stay as they are.

    Args:
        uri: Tracking URI.
        run_id: The run.
        paths: The files.
        folder: Folder of the files among the run's artifacts.

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
    """Download the files of a logged model: ``adapter``, ``config.yaml``, ``backbone.safetensors``, ...

    Args:
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``runs:/ID/model``.
        uri: Tracking URI.
        folder: Folder to put them into.

    Raises:
        UserError: the model does not exist, or metalora has not logged it.
    """
    import mlflow

    _be_quick()
    uri = tracking_address(uri)
    mlflow.set_tracking_uri(uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        _client(uri)
        mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=str(folder))
    except Exception as error:  # as in `MlflowTracker.start`
        raise UserError(f"model {model!r} could not be fetched from {redact_uri(uri)!r}: {_reason(error)}") from None
    found = next(folder.rglob("config.yaml"), None)
    if found is None:
        raise UserError(f"model {model!r} was not logged by metalora: it has no config.yaml")
    return found.parent
