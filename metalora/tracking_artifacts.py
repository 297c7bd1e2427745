"""Files for MLflow runs that are over."""

import os
from collections.abc import Iterable
from pathlib import Path

from metalora.errors import UserError
from metalora.tracking import TIMEOUT_SECONDS, _reason


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
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_SECONDS))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient

    try:
        client = MlflowClient(tracking_uri=uri)
        for path in paths:
            client.log_artifact(run_id, str(path), folder)
    except Exception as error:  # MLflow, SQLAlchemy and requests each have their own
        raise UserError(f"MLflow at {uri!r} did not take the files: {_reason(error)}") from None
