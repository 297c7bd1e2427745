"""Naming modules: plain names, name endings, globs, regular expressions."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from metalora.errors import UserError
from metalora.registry import nearest

T = TypeVar("T")


def matches(pattern: str, name: str) -> bool:
    """Tell whether a module pattern names a module.

    ``re:...`` is a regular expression for the whole name, a pattern with ``* ? [`` a glob for the whole name;
    anything else is the name itself or, as in PEFT, its ending after a dot.
    """
    if pattern.startswith("re:"):
        try:
            return re.fullmatch(pattern[3:], name) is not None
        except re.error as error:
            raise UserError(f"module pattern {pattern!r} is no regular expression: {error}") from None
    if any(mark in pattern for mark in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith("." + pattern)


def select(patterns: Iterable[str], names: Iterable[str], setting: str) -> list[str]:
    """Return the names that any pattern matches, in the names' order.

    Raises:
        UserError: a pattern matches nothing; the nearest name is given.
    """
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if matches(pattern, name)]
        if not found:
            raise UserError(f"{setting}: {pattern!r} matches no module{nearest(pattern, names)}")
        chosen.update(found)
    return [name for name in names if name in chosen]


def lookup(patterns: Mapping[str, T], name: str, default: T) -> T:
    """Return the value of the first pattern that matches the name, else the default."""
    return next((value for pattern, value in patterns.items() if matches(pattern, name)), default)
