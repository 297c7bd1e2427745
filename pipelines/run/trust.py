"""What this user has named here before: files of runs, which may come from strangers, name code and places too.

A file that a campaign would run, an address that a run would be tracked at, a folder that Ray would write to are used
without a word where the user named them before; else they have to be named.
"""

import argparse
import os
from pathlib import Path

from metalora.config import Config, TrackingConfig
from metalora.data.table import hash_of
from metalora.errors import UserError
from metalora.files import cache_dir
from metalora.places import sqlite_file
from metalora.redact import redact_uri
from metalora.tracking.build import tracking_address

WRITTEN = {"tracking_uri": "tracking", "storage_path": "cluster"}


def trust(kind: str, content: str | bytes) -> None:
    """Remember what the user has named."""
    (cache_dir("trusted") / hash_of([kind, content])).touch()


def is_trusted(kind: str, content: str | bytes) -> bool:
    """Tell whether the user has named this before."""
    return (cache_dir("trusted") / hash_of([kind, content])).exists()


def check_places(config: Config, options: argparse.Namespace, folder: Path | None = None) -> None:
    """Remember the places that are written to, or, for a run that is gone on with, refuse those never named here.

    Args:
        config: Its settings.
        options: The command line.
        folder: The run that is gone on with.

    Raises:
        UserError: a place outside of the run's project that the user has never named.
    """
    for name, section in WRITTEN.items():
        place = getattr(getattr(config, section), name)
        if name == "tracking_uri":
            place = tracking_address(place)
        if place in (None, "none"):
            continue
        if folder is None or hasattr(options, name):
            trust(name, redact_uri(place))
        elif not is_known_place(name, place, folder):
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"run {folder.name!r} names {name} {redact_uri(place)!r}, which was never used from here: if it shall "
                f"be written to, say so by {option} {redact_uri(place)}"
            )


def is_known_place(name: str, place: str, folder: Path) -> bool:
    """Tell whether a place was named here before, is the default here, or in the project that a run's folder is in.

    Args:
        name: The setting.
        place: Its value.
        folder: The run's folder.
    """
    if is_trusted(name, redact_uri(place)) or place == tracking_address(TrackingConfig().tracking_uri):
        return True
    path = sqlite_file(place) or (None if "://" in place else Path(place))
    project = folder.parent.parent
    return path is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(project))
