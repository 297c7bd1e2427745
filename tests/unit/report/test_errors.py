"""Tables and pictures of mistakes."""

import csv

import numpy as np
import pytest
from PIL import Image

from metalora.evaluate.predictions import Predictions
from metalora.report.errors import draw_confusion, draw_worst, weakest, write_classes


def _predictions(classes, domains=2, each=6):
    labels = [f"c{i % classes:02d}" for i in range(classes * each)]
    predicted = [label if i % 4 else f"c{(i + 1) % classes:02d}" for i, label in enumerate(labels)]
    names = [f"d{i % domains}" for i in range(len(labels))]
    return Predictions(
        [str(i) for i in range(len(labels))], names, labels, predicted, np.linspace(0.5, 1, len(labels), dtype="f4")
    )


def test_classes_are_a_table(tmp_path):
    given = Predictions(
        ["1", "2", "3", "4"], ["a"] * 4, ["x, y", "x, y", "z", "x, y"], ["x, y", "z", "z", "z"], np.ones(4, "f4")
    )
    write_classes(tmp_path / "classes.csv", given)
    with (tmp_path / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"domain": "a", "label": "x, y", "images": "3", "right": "1", "accuracy": "0.3333", "mostly_taken_for": "z",
         "times": "2"},
        {"domain": "a", "label": "z", "images": "1", "right": "1", "accuracy": "1.0000", "mostly_taken_for": "",
         "times": "0"},
    ]  # fmt: skip


def test_the_weakest_have_some_images_and_a_mistake():
    labels = ["a"] * 10 + ["b"] * 10 + ["c"] * 2 + ["d"] * 10
    predicted = ["a"] * 9 + ["b"] + ["a"] * 8 + ["b"] * 2 + ["a"] * 2 + ["d"] * 10
    given = Predictions([str(i) for i in range(32)], ["x"] * 32, labels, predicted, np.ones(32, "f4"))
    assert [(one.label, one.right, one.instead) for one in weakest(given)] == [("b", 2, "a"), ("a", 9, "b")]


@pytest.mark.parametrize(("classes", "domains"), [(2, 1), (12, 5), (60, 14)])
def test_pictures_are_drawn_whatever_there_is_of_it(tmp_path, classes, domains):
    given = _predictions(classes, domains)
    draw_confusion(tmp_path / "confusion.png", given)
    assert draw_worst(tmp_path / "mistakes.png", given, lambda i: np.full((5 + i % 3, 9, 3), i % 255, np.uint8))
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 150
            assert max(image.size) < 6000


def test_without_a_mistake_there_is_no_picture_of_one(tmp_path):
    given = Predictions(["1"], ["a"], ["x"], ["x"], np.ones(1, "f4"))
    draw_confusion(tmp_path / "confusion.png", given)
    assert not draw_worst(tmp_path / "mistakes.png", given, lambda i: np.zeros((4, 4, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
