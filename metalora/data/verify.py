"""Decode every image once, and remember the bad ones."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import PIL
from torch import Tensor

from metalora.data.images import decode
from metalora.data.table import BoolArray, Table, hash_of
from metalora.errors import UserError, given_as
from metalora.files import cache_dir, cached
from metalora.reading import read_json

_FILE = "bad.json"
_CHUNK = 256
_DECODER_VERSION = "3"  # raised when `decode` accepts other images than before

T = TypeVar("T")
Encode = Callable[[bytes, str, int], Tensor]


class Keeper:
    """Keeps the codes of images that are decoded to verify them, so that they are decoded once.

    Args:
        encode: Makes codes of an image's bytes, its name, and the most pixels that are decoded.
        example: Codes of one image, (1, ...): their shape and type.
        most: Bytes that the codes of all images may take; if they take more, none are kept.
    """

    def __init__(self, encode: Encode, example: Tensor, most: float) -> None:
        self.encode = encode
        self.example = example[0].numpy()
        self.most = most
        self.codes: npt.NDArray[Any] | None = None

    def begin(self, count: int) -> None:
        """Make room for so many images."""
        if count * self.example.nbytes <= self.most:
            self.codes = np.empty((count, *self.example.shape), self.example.dtype)

    def decode(self, data: bytes, name: str, most: int, row: int) -> None:
        """Decode an image, and keep it if there is room.

        Raises:
            UserError: it cannot be decoded.
        """
        if self.codes is None:
            decode(data, name, most)
        else:
            self.codes[row] = self.encode(data, name, most).numpy()

    def select(self, keep: BoolArray) -> None:
        """Leave out images, as `Table.select` does."""
        if self.codes is not None:
            self.codes = self.codes[keep]


def verify(table: Table, on_bad_image: Literal["error", "skip"], keeper: Keeper | None = None) -> Table:
    """Return the table without its undecodable images, whose names are in ``skipped``.

    Every image is decoded, once: the result is kept in the cache by the table's fingerprint.

    Args:
        table: The table.
        on_bad_image: What an image that cannot be decoded leads to.
        keeper: Keeps what is decoded, in the order of the table that is returned; nothing, if the cache knew.

    Raises:
        UserError: an image cannot be decoded and ``on_bad_image`` is "error" (the first is named, the
            others are counted), or one cannot even be read.
    """
    bad = _bad_rows(table, keeper)
    if not bad:
        return table
    if on_bad_image == "error":
        row = min(bad)
        more = f" ({len(bad) - 1} more like it)" if len(bad) > 1 else ""
        raise UserError(f"{bad[row]}{more}; mend or remove it, or set on_bad_image to skip{given_as('on_bad_image')}")
    keep = np.ones(len(table), dtype=bool)
    keep[list(bad)] = False
    if keeper is not None:
        keeper.select(keep)
    return replace(table.select(keep), skipped=tuple(table.name(row) for row in sorted(bad)))


def _bad_rows(table: Table, keeper: Keeper | None) -> dict[int, str]:
    # another Pillow may read other formats
    key = hash_of([table.fingerprint, PIL.__version__, _DECODER_VERSION, str(table.max_pixels)])
    folder = cached(
        cache_dir("data") / f"verified-{key}", lambda folder: _write_bad_rows(table, folder / _FILE, keeper)
    )
    bad: dict[int, str] = read_json(folder / _FILE, f"the cache {folder}", dict[int, str])
    return bad


def _write_bad_rows(table: Table, file: Path, keeper: Keeper | None) -> None:
    if keeper is not None:
        keeper.begin(len(table))
    found = over_chunks(len(table), lambda rows: _decode_all(table, rows, keeper))
    file.write_text(json.dumps(dict(pair for pairs in found for pair in pairs)), encoding="utf-8")


def over_chunks(count: int, act: Callable[[range], T]) -> Iterator[T]:
    """Yield what a function returns of so many rows, some hundred at a time, in their order; threads call it."""
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        yield from pool.map(act, chunks)


def _decode_all(table: Table, rows: Iterable[int], keeper: Keeper | None) -> list[tuple[int, str]]:
    bad = []
    for row in rows:
        # what cannot be read now (a lost mount, say) may be readable tomorrow: not remembered as bad
        data = table.read(row)
        try:
            if keeper is None:
                decode(data, table.name(row), table.max_pixels)
            else:
                keeper.decode(data, table.name(row), table.max_pixels, row)
        except UserError as error:
            bad.append((row, str(error)))
    return bad
