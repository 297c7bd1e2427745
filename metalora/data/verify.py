"""Decode every image once, and remember the bad ones."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import PIL

from metalora.data.images import decode
from metalora.data.table import Table, hash_of
from metalora.errors import UserError
from metalora.files import cache_dir, cached
from metalora.reading import read_json

_FILE = "bad.json"
_CHUNK = 256
_DECODER_VERSION = "3"  # raised when `decode` accepts other images than before


def verify(table: Table, on_bad_image: Literal["error", "skip"]) -> Table:
    """Return the table without its undecodable images, whose names are in ``skipped``.

    Every image is decoded, once: the result is kept in the cache by the table's fingerprint.

    Raises:
        UserError: an image cannot be decoded and ``on_bad_image`` is "error" (the first is named, the
            others are counted), or one cannot even be read.
    """
    bad = _bad_rows(table)
    if not bad:
        return table
    if on_bad_image == "error":
        row = min(bad)
        more = f" ({len(bad) - 1} more like it)" if len(bad) > 1 else ""
        raise UserError(f"{bad[row]}{more}; mend or remove it, or set on_bad_image to skip")
    keep = np.ones(len(table), dtype=bool)
    keep[list(bad)] = False
    return replace(table.select(keep), skipped=tuple(table.name(row) for row in sorted(bad)))


def _bad_rows(table: Table) -> dict[int, str]:
    # another Pillow may read other formats
    key = hash_of([table.fingerprint, PIL.__version__, _DECODER_VERSION, str(table.max_pixels)])
    folder = cached(cache_dir("data") / f"verified-{key}", lambda folder: _write_bad_rows(table, folder / _FILE))
    bad: dict[int, str] = read_json(folder / _FILE, f"the cache {folder}", dict[int, str])
    return bad


def _write_bad_rows(table: Table, file: Path) -> None:
    chunks = [range(start, min(start + _CHUNK, len(table))) for start in range(0, len(table), _CHUNK)]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda chunk: _decode_all(table, chunk), chunks))
    file.write_text(json.dumps(dict(pair for pairs in found for pair in pairs)), encoding="utf-8")


def _decode_all(table: Table, rows: Iterable[int]) -> list[tuple[int, str]]:
    bad = []
    for row in rows:
        # what cannot be read now (a lost mount, say) may be readable tomorrow: not remembered as bad
        data = table.read(row)
        try:
            decode(data, table.name(row), table.max_pixels)
        except UserError as error:
            bad.append((row, str(error)))
    return bad
