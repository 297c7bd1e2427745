"""Names of classes that a table gives as integers: in a column beside them, or in a file beside the table."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from metalora.data.names import composed
from metalora.data.sources.columns import accepted
from metalora.errors import UserError
from metalora.limits import limits
from metalora.reading import gate, read_bytes, read_json, short

FILES = ("classes.txt", "classes.json")
COLUMNS = ("label_name", "class_name")

_INTEGER = re.compile(r"[+-]?[0-9]+")

Where = Callable[[int], str]  # what error messages call a row


def find_class_files(folder: Path) -> list[Path]:
    """Return the files in a folder that name classes."""
    return [folder / name for name in FILES if (folder / name).exists()]


def read_class_file(folder: Path) -> dict[int, str] | None:
    """Read ``classes.txt`` (line k, from 0 on, names label k) or ``classes.json`` in a folder; None if it has neither.

    JSON holds a list of names, or an object such as ``{"0": "cat", "1": "dog"}``.

    Raises:
        UserError: both are there, one cannot be read, or a name is empty, too long, or names two labels.
    """
    found = find_class_files(folder)
    if not found:
        return None
    if len(found) > 1:
        raise UserError(f"{folder} holds {' and '.join(FILES)}, which both name the classes; wanted: one of them")
    what = f"class names {str(found[0])!r}"
    with gate(what):
        names = _text_names(found[0], what) if found[0].suffix == ".txt" else _json_names(found[0], what)
        _check(names)
    return names


def _text_names(file: Path, what: str) -> dict[int, str]:
    lines = read_bytes(file, limits().text_bytes, what).decode("utf-8-sig").rstrip().splitlines()
    return dict(enumerate(composed(line.strip()) for line in lines))


def _json_names(file: Path, what: str) -> dict[int, str]:
    said: list[str] | dict[str, str] = read_json(file, what, list[str] | dict[str, str])
    if isinstance(said, list):
        said = {str(label): name for label, name in enumerate(said)}
    wrong = next((label for label in said if not _INTEGER.fullmatch(label)), None)
    if wrong is not None:
        raise ValueError(f"the key {short(wrong)} is no integer")
    return {int(label): composed(name) for label, name in said.items()}


def _check(names: Mapping[int, str]) -> None:
    if not names:
        raise ValueError("it names no class")
    labels: dict[str, int] = {}
    for label, name in names.items():
        if not name or len(name.encode(errors="replace")) > limits().name_bytes:
            raise ValueError(f"the name of label {label} has {len(name)} characters; wanted: 1 to name_bytes")
        if labels.setdefault(name, label) != label:
            raise ValueError(f"{short(name)} names the labels {labels[name]} and {label}; wanted: one name a label")


def are_integers(labels: Sequence[str]) -> bool:
    """Tell whether all labels are integers, written as text."""
    return all(map(_INTEGER.fullmatch, set(labels)))


def named(labels: Sequence[str], names: Mapping[int, str], where: Where) -> list[str]:
    """Return the names of integers that are written as text.

    Raises:
        UserError: an integer has no name.
    """
    texts = []
    for row, label in enumerate(labels):
        if int(label) not in names:
            raise UserError(f"{where(row)}: label {label} has no name; wanted: {accepted(names)}")
        texts.append(names[int(label)])
    return texts


class Pairs:
    """The names that a column gives to the integers of another, one for each."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.labels: dict[str, str] = {}

    def check(self, labels: Sequence[str], names: Sequence[str], where: Where, first: int = 0) -> None:
        """Check some rows, the first of which is row ``first``, against all before.

        Raises:
            UserError: a label has two names, or a name two labels.
        """
        for row, (label, name) in enumerate(zip(labels, names, strict=True), first):
            if self.names.setdefault(label, name) != name:
                met = f"label {short(label)} is named {short(name)}, and {short(self.names[label])} before"
                raise UserError(f"{where(row)}: {met}; wanted: one name a label")
            if self.labels.setdefault(name, label) != label:
                met = f"{short(name)} names label {short(label)}, and {short(self.labels[name])} before"
                raise UserError(f"{where(row)}: {met}; wanted: one name a label")
