"""A picture with some images of each domain and class."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalora.report.drawing import drawn, shown

Array = np.ndarray[Any, np.dtype[Any]]

SIDE = 64  # of a tile, in pixels
PER_CELL = 4  # images, two beside two
_GAP, _WIDE_GAP = 2, 10
_CELL = 2 * SIDE + _GAP
_DPI = 100
_EMPTY, _PAPER = 235, 255
_LINE = 16  # characters of a name that fit over a cell


def draw_contact_sheet(
    path: Path,
    domains: Sequence[str],
    classes: Sequence[str],
    cells: Mapping[tuple[int, int], Sequence[Array]],
    caption: str,
) -> None:
    """Draw images into a PNG: a row for each domain, a column for each class.

    Args:
        path: The PNG file.
        domains: Names of the rows.
        classes: Names of the columns.
        cells: By row and column at most `PER_CELL` images (h, w, 3), of uint8 and at most `SIDE` pixels a side.
        caption: Text below.
    """
    sheet = _sheet(len(domains), len(classes), cells)
    height, width = sheet.shape[:2]
    names = [textwrap.fill(shown(name), _LINE) for name in classes]
    lines = 1 + max(name.count("\n") for name in names)
    with drawn(path, max(5, width / _DPI + 2.5), height / _DPI + 0.7 + 0.2 * lines, _DPI) as figure:
        axes = figure.subplots()
        axes.imshow(sheet)
        step = _CELL + _WIDE_GAP
        axes.set_xticks([step * number + _CELL / 2 for number in range(len(names))], names)
        axes.set_yticks([step * number + _CELL / 2 for number in range(len(domains))], [shown(one) for one in domains])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(caption)


def _sheet(rows: int, columns: int, cells: Mapping[tuple[int, int], Sequence[Array]]) -> Array:
    """Return the images side by side, (height, width, 3)."""
    step = _CELL + _WIDE_GAP
    sheet = np.full((rows * step - _WIDE_GAP, columns * step - _WIDE_GAP, 3), _PAPER, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * step, column * step
            sheet[top : top + _CELL, left : left + _CELL] = _EMPTY
            for number, image in enumerate(cells.get((row, column), ())[:PER_CELL]):
                height, width = image.shape[:2]
                y = top + (number // 2) * (SIDE + _GAP) + (SIDE - height) // 2
                x = left + (number % 2) * (SIDE + _GAP) + (SIDE - width) // 2
                sheet[y : y + height, x : x + width] = image
    return sheet
