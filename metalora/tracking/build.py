"""Build the tracker of a tracking URI."""

import os
import re

from metalora.errors import UserError, given_as
from metalora.places import absolute_tracking, sqlite_file
from metalora.redact import is_redacted, redact_uri
from metalora.tracking.mlflow_tracker import MlflowTracker
from metalora.tracking.tracker import NullTracker, Tracker

LONGEST_EXPERIMENT = 500


def build_tracker(uri: str, experiment: str, run_name: str) -> Tracker:
    """Build the tracker of a tracking URI ("none": a null tracker).

    Raises:
        UserError: the URI is a ``file:`` store, which MLflow no longer supports, or a database in memory, or the
            experiment's name is not valid.
    """
    if uri == "none":
        return NullTracker()
    if uri.startswith("file:") or "://" not in uri:
        raise UserError(f"tracking_uri {uri!r}: wanted sqlite:///FILE, http(s)://HOST, a database URI, or none"
                        f"{given_as('tracking_uri')}")  # fmt: skip
    if uri.startswith("sqlite") and sqlite_file(uri) is None:
        raise UserError(f"tracking_uri {uri!r} keeps nothing: wanted sqlite:///FILE, or none{given_as('tracking_uri')}")
    if not experiment.strip() or not experiment.isprintable() or len(experiment) > LONGEST_EXPERIMENT:
        raise UserError(f"experiment {experiment!r}: wanted a name of 1 to {LONGEST_EXPERIMENT} printable characters"
                        f"{given_as('experiment')}")  # fmt: skip
    return MlflowTracker(uri, experiment, run_name)


def tracking_address(uri: str) -> str:
    """Return the tracking URI of a setting, with a file in it made absolute.

    Raises:
        UserError: the URI was recorded without its password, and no environment variable has it.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if uri == "default":
        return absolute_tracking(given or "sqlite:///mlflow.db")
    if not is_redacted(uri):
        return absolute_tracking(uri)
    if given and redact_uri(given) == uri:
        return given
    if os.environ.get("MLFLOW_TRACKING_PASSWORD") or os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return re.sub(r"://[^/]*@", "://", uri)  # MLflow reads these itself
    raise UserError(
        f"tracking_uri {uri!r} was recorded without its password: set MLFLOW_TRACKING_URI to it as a whole, "
        "or give --tracking-uri"
    )
