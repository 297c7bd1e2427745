"""Patterns that name modules: plain names, name endings, globs, regular expressions."""

import math
import re
import time
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from metalora.errors import UserError, given_as, one_line
from metalora.limits import limits
from metalora.reading import short
from metalora.registry import nearest

T = TypeVar("T")
LONGEST = 1000  # characters of a pattern
MOST_WRITTEN_OUT = 20_000

_COUNTED = re.compile(r"\{(\d*),?(\d*)\}")


def matches(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the module names that match a pattern.

    ``re:...`` is a regular expression for the whole name. A pattern with ``* ? [`` is a glob for the whole name.
    Anything else is the name itself or, as in PEFT, its ending after a dot.

    Raises:
        UserError: the regular expression is not valid, or takes longer than `limits` allow (some never end).
    """
    if len(pattern) > LONGEST:
        raise UserError(f"module pattern {short(pattern)} has more than {LONGEST} characters")
    if pattern.startswith("re:"):
        return _matching(pattern[3:], names)
    if any(mark in pattern for mark in "*?["):
        return [name for name in names if fnmatchcase(name, pattern)]
    return [name for name in names if name == pattern or name.endswith("." + pattern)]


def _matching(expression: str, names: Iterable[str]) -> list[str]:
    import regex  # as `re`, but it can be told to stop

    seconds = limits().pattern_seconds
    end = time.monotonic() + seconds
    try:
        counts = [int(count) for pair in _COUNTED.findall(expression) for count in pair if count]
        if len(expression) * math.prod(filter(None, counts)) > MOST_WRITTEN_OUT:  # as it is compiled
            raise ValueError(f"with its repetitions written out it has more than {MOST_WRITTEN_OUT} characters")
        re.compile(expression)  # refuses what only the other knows, such as recursion without end
        compiled = regex.compile(expression)
        return [name for name in names if compiled.fullmatch(name, timeout=max(end - time.monotonic(), 1e-3))]
    except TimeoutError:
        raise UserError(f"module pattern {short(f're:{expression}')} takes more than {seconds:g} s") from None
    except Exception as error:  # deep ones end in a RecursionError
        raise UserError(
            f"module pattern {short(f're:{expression}')} is no regular expression: {one_line(error)}"
        ) from None


def select(patterns: Iterable[str], names: Iterable[str], setting: str) -> list[str]:
    """Return the names that any pattern matches, in the names' order.

    Raises:
        UserError: a pattern matches nothing; the message gives the nearest name.
    """
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        found = matches(pattern, names)
        if not found:
            raise UserError(
                f"{setting}: {short(pattern)} matches no module{nearest(pattern, names)}{given_as(setting)}"
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def lookup(patterns: Mapping[str, T], name: str, default: T) -> T:
    """Return the value of the first pattern that matches the name, else the default."""
    return next((value for pattern, value in patterns.items() if matches(pattern, [name])), default)
