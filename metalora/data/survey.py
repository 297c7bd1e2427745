"""Look at every image of a table once: sizes, formats, unreadable images, equal images."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from metalora.data.images import decode, describe
from metalora.data.table import BoolArray, IntArray, Table
from metalora.data.verify import over_chunks
from metalora.errors import UserError


@dataclass(frozen=True)
class _Look:
    """What one image is."""

    format: str
    width: int
    height: int
    pixels: bytes  # SHA-256 of the decoded pixels and their shape


@dataclass(frozen=True)
class Survey:
    """What the images of a table are.

    Attributes:
        readable: (N,) whether each image can be decoded.
        unreadable: Why not, by row.
        sizes: (n, 2) width and height in pixels of those that can, as stored.
        formats: Their number by format, the most frequent first.
        equal: Rows of images with the same decoded pixels, group by group, each ascending.
    """

    readable: BoolArray
    unreadable: dict[int, str]
    sizes: IntArray
    formats: dict[str, int]
    equal: tuple[tuple[int, ...], ...]


def survey(table: Table, progress: Callable[[int], None] = lambda done: None) -> Survey:
    """Decode every image of a table, and keep what it is.

    Args:
        table: The table; its images may be damaged, or missing.
        progress: Told how many images are done.
    """
    found: list[_Look | str] = []
    for part in over_chunks(len(table), lambda rows: [_look(table, row) for row in rows]):
        found += part
        progress(len(found))
    groups: dict[bytes, list[int]] = defaultdict(list)
    looks = {row: look for row, look in enumerate(found) if isinstance(look, _Look)}
    for row, look in looks.items():
        groups[look.pixels].append(row)
    return Survey(
        readable=np.array([isinstance(look, _Look) for look in found], dtype=bool),
        unreadable={row: look for row, look in enumerate(found) if isinstance(look, str)},
        sizes=np.array([(look.width, look.height) for look in looks.values()], dtype=np.int64).reshape(-1, 2),
        formats=dict(Counter(look.format for look in looks.values()).most_common()),
        equal=tuple(tuple(rows) for rows in groups.values() if len(rows) > 1),
    )


def _look(table: Table, row: int) -> _Look | str:
    try:
        data = table.read(row)
        image = decode(data, table.name(row), table.max_pixels)
        format, width, height = describe(data)
    except UserError as error:
        return str(error)
    pixels = hashlib.sha256(f"{image.width} {image.height} ".encode() + image.tobytes()).digest()
    return _Look(format, width, height, pixels)


def repeated(table: Table, equal: Iterable[tuple[int, ...]]) -> int:
    """Return how many images are in their split and domain before, among groups of equal ones."""
    places = (Counter((table.split[row], table.domain[row]) for row in rows) for rows in equal)
    return sum(count - 1 for place in places for count in place.values())


def equal_codes(codes: npt.NDArray[np.generic]) -> list[tuple[int, ...]]:
    """Return the groups of rows whose codes (N, ...) are equal."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, code in enumerate(codes):
        groups[hashlib.sha256(np.ascontiguousarray(code).tobytes()).digest()].append(row)
    return [tuple(rows) for rows in groups.values() if len(rows) > 1]


def leaks(table: Table, equal: Iterable[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Return the images that are also in an earlier split (train, val, test), with an equal image of that split.

    Among several equal images, one of the same domain is preferred.

    Returns:
        Pairs of rows: the image of the earlier split, and that of the later one.
    """
    found = []
    for rows in equal:
        for row in rows:
            earlier = [other for other in rows if table.split[other] < table.split[row]]
            if earlier:
                near = min(earlier, key=lambda other: (table.domain[other] != table.domain[row], table.split[other]))
                found.append((near, row))
    return found


def contradictions(table: Table, equal: Iterable[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Return pairs of rows with equal images, one domain and different labels; of a group and domain, one pair."""
    found = []
    for rows in equal:
        first: dict[int, int] = {}
        told = set()
        for row in rows:
            domain = int(table.domain[row])
            other = first.setdefault(domain, row)
            if table.label[other] != table.label[row] and domain not in told:
                told.add(domain)
                found.append((other, row))
    return found


def tiles(table: Table, rows: Iterable[int], side: int) -> list[Image.Image]:
    """Return images that fit into a square of ``side`` pixels."""
    return [ImageOps.contain(decode(table.read(row), table.name(row), table.max_pixels), (side, side)) for row in rows]


def spread(count: int, most: int) -> IntArray:
    """Return at most ``most`` of the numbers below ``count``, evenly spaced, ascending, with the first and last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)) if count else np.arange(0)
