"""Places and code that this user has named here before; files of runs, which may come from strangers, name them too.

A file that a campaign would run, an address that a run would be tracked at, and a folder that Ray would write to are
used only if the user has named them before; otherwise the user must name them.
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
    """Remember something that the user has named."""
    (cache_dir("trusted") / hash_of([kind, content])).touch()


def is_trusted(kind: str, content: str | bytes) -> bool:
    """Tell whether the user has named something before."""
    return (cache_dir("trusted") / hash_of([kind, content])).exists()


def check_places(config: Config, options: argparse.Namespace, folder: Path | None = None) -> None:
    """Remember the places that a run writes to; for a resumed run, check that they were named here before.

    Args:
        config: Settings of the run.
        options: The parsed command line.
        folder: Folder of the run that is resumed; None for a new run.

    Raises:
        UserError: the user has never named a place, and it lies outside of the run's project.
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
                f"run {folder.name!r} names {name} {redact_uri(place)!r}, which was never used from here: to allow "
                f"writing to it, give {option} {redact_uri(place)}"
            )


def is_known_place(name: str, place: str, folder: Path) -> bool:
    """Tell whether a place was named here before, is the default here, or lies in the project of a run's folder.

    Args:
        name: Name of the setting.
        place: Value of the setting.
        folder: The run's folder.
    """
    if is_trusted(name, redact_uri(place)) or place == tracking_address(TrackingConfig().tracking_uri):
        return True
    path = sqlite_file(place) or (None if "://" in place else Path(place))
    project = folder.parent.parent
    return path is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(project))
