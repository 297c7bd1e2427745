from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalora.report.contact_sheet import _sheet, draw_contact_sheet

RED, BLUE = np.array([250, 0, 0], dtype=np.uint8), np.array([0, 0, 250], dtype=np.uint8)


def _block(colour: np.ndarray, height: int = 64, width: int = 64) -> np.ndarray:
    return np.broadcast_to(colour, (height, width, 3))


def test_each_image_is_in_the_row_of_its_domain_and_the_column_of_its_class() -> None:
    sheet = _sheet(2, 3, {(0, 0): [_block(RED)] * 4, (1, 2): [_block(BLUE, 32, 64)]})
    assert sheet.shape == (2 * 130 + 10, 3 * 130 + 20, 3)
    red, blue = ((sheet == colour).all(axis=-1) for colour in (RED, BLUE))
    assert red.sum() == 4 * 64 * 64
    assert red[:130, :130].sum() == red.sum()
    assert blue.sum() == 32 * 64
    assert blue[140 + 16 : 140 + 48, 280 : 280 + 64].all()  # in the middle of its tile
    assert (sheet[:130, 140:270] == 235).all()  # a cell without images
    assert (sheet[130:140] == 255).all()


@pytest.mark.parametrize("names", [["a"], ["$5_$10", "素描", "x" * 250, "a\nb\t\x07"]])
def test_a_picture_is_drawn_whatever_the_names(tmp_path: Path, names: list[str]) -> None:
    cells = {(row, row): [_block(RED)] for row in range(len(names))}
    draw_contact_sheet(tmp_path / "new" / "s.png", names, names, cells, "caption")
    with Image.open(tmp_path / "new" / "s.png") as image:
        colours = np.asarray(image.convert("RGB")).astype(int)
    red = (abs(colours - RED).max(axis=-1) < 30).sum()
    assert 0.5 < red / (len(names) * 64 * 64) < 2  # a small sheet is drawn larger
