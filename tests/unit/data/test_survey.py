"""What images are: the oracles are Pillow, and pairs that are equal by construction."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from metalora.config import DataConfig
from metalora.data.load import find_table
from metalora.data.survey import contradictions, leaks, repeated, spread, survey, tiles

HEADER = "path,label,domain,split\n"


@pytest.fixture
def make(tmp_path):
    """Write a table of images: file, label, domain, split and number that the pixels follow from."""

    def write(*rows):
        text = HEADER
        for file, label, domain, split, number in rows:
            size = (10 + number, 20)
            pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            if number is not None and not (tmp_path / file).exists():
                Image.fromarray(pixels).save(tmp_path / file)
            text += f"{file},{label},{domain},{split}\n"
        (tmp_path / "a.csv").write_text(text)
        return find_table(DataConfig(data=str(tmp_path / "a.csv"), val_fraction=0))

    return write


def names(table, pairs):
    return [tuple(table.id[row] for row in pair) for pair in pairs]


def test_sizes_and_formats_are_pillows(make, tmp_path):
    files = ["a.png", "b.jpg", "c.bmp", "d.png", "e.tiff", "f.webp"]
    table = make(*((file, "xy"[i % 2], "d", "train", i) for i, file in enumerate(files)))
    found = survey(table)
    opened = [Image.open(io.BytesIO((tmp_path / name).read_bytes())) for name in table.id]
    assert found.sizes.tolist() == [list(image.size) for image in opened]
    assert found.formats == dict(Counter(image.format for image in opened))
    assert found.readable.all()
    assert not found.unreadable


def test_equal_pixels_are_found_whatever_the_file(make):
    """The same pixels as PNG, BMP and TIFF; other pixels of the same number of bytes."""
    table = make(
        ("a.png", "x", "d", "train", 1),
        ("b.bmp", "x", "d", "train", 1),
        ("c.tiff", "y", "e", "train", 1),
        ("d.png", "x", "d", "test", 2),
        ("e.png", "y", "d", "test", 3),
    )
    found = survey(table)
    assert names(table, found.equal) == [("a.png", "b.bmp", "c.tiff")]
    assert repeated(table, found.equal) == 1
    assert leaks(table, found.equal) == []
    assert contradictions(table, found.equal) == []


def test_leaks_name_the_earlier_image_of_the_same_domain_if_there_is_one(make):
    table = make(
        ("a.png", "x", "e", "train", 1),
        ("b.png", "x", "d", "train", 1),
        ("c.png", "x", "d", "test", 1),
        ("d.png", "y", "d", "val", 2),
        ("e.png", "y", "e", "test", 2),
        ("f.png", "y", "e", "train", 3),
        ("g.png", "x", "e", "train", 3),
        ("h.png", "x", "e", "val", 4),
        ("i.png", "x", "e", "val", 4),
    )
    found = survey(table)
    assert sorted(names(table, leaks(table, found.equal))) == [("b.png", "c.png"), ("d.png", "e.png")]
    assert names(table, contradictions(table, found.equal)) == [("g.png", "f.png")]
    assert repeated(table, found.equal) == 2


def test_damaged_and_missing_images_stop_nothing(make, tmp_path):
    table = make(*((f"{i}.png", "xy"[i % 2], "d", "train", i) for i in range(6)))
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "3.png").unlink()
    steps = []
    found = survey(table, steps.append)
    assert {table.id[row] for row in found.unreadable} == {"2.png", "3.png"}
    assert found.readable.sum() == len(found.sizes) == 4
    said = " ".join(found.unreadable.values())
    assert "cannot decode image" in said
    assert "No such file" in said
    assert steps == [6]


def test_a_survey_is_in_order_however_many_threads(make, monkeypatch):
    table = make(*((f"{i:02}.png", "xy"[i % 2], "d", "train", i) for i in range(30)))
    monkeypatch.setattr("metalora.data.verify._CHUNK", 4)
    assert survey(table).sizes[:, 0].tolist() == [10 + int(name[:2]) for name in table.id]


def test_tiles_fit_and_keep_their_shape(make):
    table = make(("a.png", "x", "d", "train", 30), ("b.png", "y", "d", "train", 0))
    assert [tile.size for tile in tiles(table, [0, 1], 64)] == [(64, 32), (32, 64)]


@pytest.mark.parametrize(
    ("count", "most", "numbers"), [(0, 4, []), (1, 4, [0]), (3, 4, [0, 1, 2]), (10, 4, [0, 3, 6, 9]), (5, 1, [0])]
)
def test_numbers_are_spread(count, most, numbers):
    assert spread(count, most).tolist() == numbers


def test_descriptions_are_strings_of_one_line(make, tmp_path):
    table = make(("a.png", "x", "d", "train", 1), ("b.png", "y", "d", "train", 2))
    (tmp_path / "b.png").write_bytes(b"\n\n")
    (reason,) = survey(table).unreadable.values()
    assert "\n" not in reason
