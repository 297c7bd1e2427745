"""A strict registry: a duplicate name raises, an unknown name raises and lists the choices."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from metalora.errors import UserError

T = TypeVar("T")
LONGEST = 300


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"``, or an empty string when nothing is near."""
    if len(name) > LONGEST:  # no misspelling, and it would take long
        return ""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """Named things of one kind.

    Args:
        kind: What the entries are, in the singular, for error messages ("adapter format").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Add ``entry``.

        Raises:
            ValueError: ``name`` is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """Return the entry.

        Raises:
            UserError: no such entry; the message lists the choices.
        """
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {name!r}{nearest(name, self._entries)} (choices: {', '.join(self)})")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries
