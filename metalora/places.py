"""Places that a user names: local paths become absolute once, where the user stands; URIs stay as they are."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metalora.errors import UserError
from metalora.redact import is_redacted

WEIGHT_FILES = (".safetensors", ".pt", ".pth")
_SQLITE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?:///)(?P<file>(?!:memory:)[^?]+)(?P<options>.*)")


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` expanded, where that is somebody's home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # "~" without a home folder, "~nobody-of-this-name": a folder may be called that
        return Path(path)


def absolute(path: str | Path) -> Path:
    """Return a path as an absolute one, ``~`` expanded; links in it stay, unless ``..`` follows them."""
    whole = expanded(path).absolute()
    return whole.resolve() if ".." in whole.parts else whole


def absolute_place(place: str) -> str:
    """Make a local path absolute; a URI stays.

    Raises:
        ValueError: it is empty, or a URI that was recorded, and so without its password.
    """
    if not place:
        raise ValueError("it is empty: a path or a URI is wanted")
    if is_redacted(place):
        raise ValueError("it was recorded without its password, so it must be given again")
    return place if "://" in place else str(absolute(place))


def absolute_data(data: str) -> str:
    """Make the setting ``data`` absolute where it is a path, not the word ``embedded``."""
    return data if data == "embedded" else absolute_place(data)


def absolute_weights(weights: str) -> str:
    """Make the setting ``weights`` absolute where it is the path of a file, not a name that a library knows."""
    return absolute_place(weights) if is_weight_file(weights) else weights


def is_weight_file(weights: str) -> bool:
    """Tell the path of a file of tensors from a name that a library knows."""
    return Path(weights).suffix.lower() in WEIGHT_FILES


def absolute_tracking(uri: str) -> str:
    """Make the file of an sqlite tracking URI absolute; every other URI stays.

    Raises:
        UserError: the file's path would hold a ``?``, where an sqlite URI ends its path.
    """
    file = sqlite_file(uri)
    if file is None:
        return uri
    if "?" in str(absolute(file)):
        raise UserError(
            f"sqlite takes no '?' in a path, and {str(absolute(file))!r} holds one: give another tracking_uri"
        )
    return _with_path(uri, absolute_place)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an sqlite URI; None for other URIs, and for a database in memory."""
    found = _SQLITE.fullmatch(uri)
    return Path(found["file"]) if found else None


def moved(place: str, old: Path, new: Path) -> str:
    """Return where a recorded place is, now that the folder which recorded it has moved.

    Args:
        place: A path, an sqlite URI, or anything else, which stays.
        old: Where the folder was when it recorded the place.
        new: Where it is now.

    Returns:
        What lies to ``new`` as ``place`` lay to ``old``, if that exists; else ``place``.
    """

    def move(path: str) -> str:
        if old == new or not Path(path).is_absolute():
            return path
        there = Path(os.path.normpath(new / os.path.relpath(path, old)))
        return str(there) if there.exists() else path

    return _with_path(place, move)


def movable(place: Any) -> Any:
    """Return what stays the same of a setting when folders are moved: of an absolute path its last part."""
    return Path(place).name if isinstance(place, str) and Path(place).is_absolute() else place


def _with_path(place: str, change: Callable[[str], str]) -> str:
    """Change the local path that a place is or, as an sqlite URI, holds; every other URI stays."""
    found = _SQLITE.fullmatch(place)
    if found:
        return f"{found['scheme']}{change(found['file'])}{found['options']}"
    return place if "://" in place else change(place)
