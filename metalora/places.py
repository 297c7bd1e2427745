"""Places that a user names: local paths become absolute once, in the user's working directory; URIs stay."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metalora.errors import UserError, given_as
from metalora.redact import is_redacted

WEIGHT_FILES = (".safetensors", ".pt", ".pth")
_SQLITE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?:///)(?P<file>(?!:memory:)[^?]+)(?P<options>.*)")


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` expanded, if it is the home of a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # "~" without a home folder, "~nobody-of-this-name": a folder may be called that
        return Path(path)


def absolute(path: str | Path) -> Path:
    """Return an absolute path with ``~`` expanded; links in it stay, unless ``..`` follows them."""
    whole = expanded(path).absolute()
    return whole.resolve() if ".." in whole.parts else whole


def absolute_place(place: str) -> str:
    """Return a local path as an absolute one; a URI stays.

    Raises:
        ValueError: the place is empty, or is a URI that was recorded without its password.
    """
    if not place:
        raise ValueError("it is empty: a path or a URI is wanted")
    if is_redacted(place):
        raise ValueError("it was recorded without its password, so it must be given again")
    return place if "://" in place else str(absolute(place))


def absolute_data(data: str) -> str:
    """Return the setting ``data``, made absolute unless it is the word ``embedded``."""
    return data if data == "embedded" else absolute_place(data)


def absolute_weights(weights: str) -> str:
    """Return the setting ``weights``, made absolute if it is the path of a file and not a name of a library."""
    return absolute_place(weights) if is_weight_file(weights) else weights


def is_weight_file(weights: str) -> bool:
    """Tell whether the setting ``weights`` is the path of a file, and not a name of a library."""
    return Path(weights).suffix.lower() in WEIGHT_FILES


def absolute_tracking(uri: str) -> str:
    """Return an sqlite tracking URI with its file made absolute; every other URI stays.

    Raises:
        UserError: the absolute path holds a ``?``, which would end the path in an sqlite URI.
    """
    file = sqlite_file(uri)
    if file is None:
        return uri
    if "?" in str(absolute(file)):
        raise UserError(
            f"sqlite takes no '?' in a path, and {str(absolute(file))!r} holds one: give another tracking_uri"
            f"{given_as('tracking_uri')}"
        )
    return _with_path(uri, absolute_place)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an sqlite URI; None for other URIs and for a database in memory."""
    found = _SQLITE.fullmatch(uri)
    return Path(found["file"]) if found else None


def moved(place: str, old: Path, new: Path) -> str:
    """Return where a recorded place is now, after the folder that recorded it has moved.

    Args:
        place: A path, an sqlite URI, or anything else, which is returned as it is.
        old: Path of the folder when it recorded the place.
        new: Path of the folder now.

    Returns:
        The place relative to ``new`` as it was relative to ``old``, if that exists; else ``place``.
    """

    def move(path: str) -> str:
        if old == new or not Path(path).is_absolute():
            return path
        there = Path(os.path.normpath(new / os.path.relpath(path, old)))
        return str(there) if there.exists() else path

    return _with_path(place, move)


def movable(place: Any) -> Any:
    """Return the part of a setting that stays the same when folders are moved: of an absolute path, the last part."""
    return Path(place).name if isinstance(place, str) and Path(place).is_absolute() else place


def _with_path(place: str, change: Callable[[str], str]) -> str:
    """Change the local path that a place is or, as an sqlite URI, holds; every other URI stays."""
    found = _SQLITE.fullmatch(place)
    if found:
        return f"{found['scheme']}{change(found['file'])}{found['options']}"
    return place if "://" in place else change(place)
