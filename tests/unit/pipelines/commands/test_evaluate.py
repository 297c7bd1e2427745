"""``metalora evaluate`` tells of images that the run was trained on."""

import shutil

import numpy as np
import pytest
from PIL import Image

from metalora.config import from_dict
from metalora.data import load_table
from pipelines.commands.evaluate import count_trained


@pytest.fixture
def copies(tree, tmp_path):
    """A tree with the same images under other names, so that other splits are drawn, and one new image a class."""
    for number, file in enumerate(sorted(tree.rglob("*.png"))):
        place = tmp_path / "copies" / file.parent.relative_to(tree)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / f"copy{number}.png")
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(place / "new.png")
    return tmp_path / "copies"


def test_images_of_the_training_are_counted(tree, copies):
    trained_on = {"data": str(tree)}
    own_data, other_data = (from_dict({"data": {"data": str(place)}}).data for place in (tree, copies))
    own, other = load_table(own_data), load_table(other_data)
    trained = {own.read(int(row)) for row in own.rows("train")}
    expected = sum(other.read(int(row)) in trained for row in other.rows("test"))
    assert 0 < expected < len(other.rows("test"))
    assert count_trained(trained_on, other_data, other) == expected
    assert count_trained(trained_on, own_data, own) == 0  # the run's own test images


@pytest.mark.parametrize("trained_on", [{"data": "/nowhere"}, {"data": "s3://***@bucket/x"}, {"dta": 1}])
def test_data_that_are_not_there_are_not_compared(copies, trained_on):
    data = from_dict({"data": {"data": str(copies)}}).data
    assert count_trained(trained_on, data, load_table(data)) == 0
