"""Read CSV as RFC 4180 and spreadsheets write it: quoted fields, a comma, semicolon or tab between them, UTF-8."""

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePath

from metalora.errors import UserError
from metalora.limits import limits
from metalora.reading import gate, read_lines

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
DELIMITERS = ",;\t"

_BOM = b"\xef\xbb\xbf"
_CHUNK = 4096  # rows

Columns = list[list[str | None]]


def is_csv(path: PurePath) -> bool:
    """Tell CSV from other files by its name."""
    return path.name.lower().endswith(ENDINGS)


def read_csv(file: Path, known: set[str]) -> Iterator[tuple[int, Columns]]:
    """Yield the header, and then the columns of some rows at a time; an empty field is None.

    Rows are counted from 1 on, as a spreadsheet does: the header is row 1. Empty lines are passed over, but counted.

    Args:
        file: The file; decompressed if its name ends in .gz.
        known: Names of columns in lower case, by which the delimiter is found.

    Yields:
        The number of the first row, and its columns, each of which has as many values as there are rows.

    Raises:
        UserError: the file cannot be read, is larger than `limits().table_bytes`, is not UTF-8, or has a row with more
            or fewer fields than the header.
    """
    what = f"table {str(file)!r}"
    if not file.exists():
        raise UserError(f"{what} does not exist")
    lines = _texts(file, what)
    with gate(what):
        header = next(lines, "")
        reader = csv.reader(chain([header], lines), delimiter=_delimiter(header, known), strict=True)
        names = [name.strip() for name in _next(reader) or []]
        if not any(names):
            raise ValueError("it has no header: its first line is empty")
        yield 1, [[name] for name in names]
        rows: list[list[str]] = []
        first = number = 2
        while (row := _next(reader)) is not None:
            if row and len(row) != len(names):
                raise ValueError(f"row {number} has {len(row)} fields, and the header {len(names)}")
            if rows and (not row or len(rows) == _CHUNK):
                yield first, _columns(rows)
                rows = []
            if row:
                first = first if rows else number
                rows.append(row)
            number += 1
        if rows:
            yield first, _columns(rows)


def _next(reader: Iterator[list[str]]) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None  # type: ignore[attr-defined]


def _columns(rows: list[list[str]]) -> Columns:
    return [[value or None for value in column] for column in zip(*rows, strict=True)]


def _texts(file: Path, what: str) -> Iterator[str]:
    """Yield the lines of a file as text."""
    size, most = 0, limits().table_bytes
    for number, line in enumerate(read_lines(file, what), 1):
        size += len(line)
        if size > most:
            raise ValueError(f"it has more than table_bytes = {most} bytes")
        try:
            yield (line.removeprefix(_BOM) if number == 1 else line).decode()
        except UnicodeDecodeError:
            raise ValueError(f"line {number} is not UTF-8; wanted: CSV that is saved as UTF-8") from None


def _delimiter(header: str, known: set[str]) -> str:
    """Return the delimiter between which a header has the most known names; among equals, the one it has most of."""

    def fits(delimiter: str) -> tuple[int, int]:
        try:
            fields = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            fields = []
        return len(known & {field.strip().casefold() for field in fields}), len(fields)

    return max(DELIMITERS, key=fits)
