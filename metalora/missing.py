"""Say that a path that a user has named does not exist, and what may have been meant."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from metalora.places import absolute
from metalora.reading import short
from metalora.registry import nearest

ALIKE = 0.65  # from here on a name counts as a misspelling of another
MOST_NAMES = 10_000  # of a folder, among which the nearest is looked for


def is_missing(path: str | Path) -> bool:
    """Tell whether a path does not exist; one that exists may still not be usable."""
    try:
        absolute(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # no permission, a name too long: who opens it says so
        return False
    return False


def no_such_path(path: str | Path, what: str, words: Iterable[str] = ()) -> str:
    """Return a message such as ``"data: no such file or folder: 'phtos' (here: /home/me), did you mean 'photos'?"``.

    Args:
        path: The path; it is shown as seen from the working directory, if it lies there.
        what: What the path was to be.
        words: What is accepted beside a path.
    """
    here, place = Path.cwd(), absolute(path)
    shown, where = (place.relative_to(here), f" (here: {here})") if place.is_relative_to(here) else (place, "")
    names: list[str] = []
    with suppress(OSError), os.scandir(place.parent) as entries:
        names = [entry.name for entry, _ in zip(entries, range(MOST_NAMES), strict=False)]
    hint = nearest(place.name, sorted([*words, *names]), ALIKE)
    if not place.parent.is_dir():
        hint = f", and no folder {short(str(shown.parent))}{hint}"
    return f"{what}: no such file or folder: {short(str(shown))}{where}{hint}"
