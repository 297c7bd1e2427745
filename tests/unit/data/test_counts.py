import numpy as np
import pandas as pd
import pytest

from metalora.config import DataConfig
from metalora.data import SPLITS, load_table
from metalora.data.counts import counted, counts, described, imbalance, training_counts
from metalora.data.domains import hold_out
from tests.unit.data.helpers import rows_of


@pytest.fixture
def table(make_tree):
    return load_table(DataConfig(data=str(make_tree({"a/x": 20, "a/y": 4, "b/x": 9, "b/y": 5}))))


def test_counts_are_those_of_pandas(table):
    rows = pd.DataFrame(rows_of(table))
    wanted = rows.groupby(["domain", "label", "split"]).size()
    found = counts(table)
    assert found.sum() == len(table) == 38
    for place, count in wanted.items():
        domain, label, split = place
        assert found[table.domains.index(domain), table.labels.index(label), SPLITS.index(split)] == count
    assert np.count_nonzero(found) == len(wanted)


def test_a_line_says_how_many_there_are(table):
    words = "25 train, 5 val, 8 test images of 2 classes in 2 domains"
    assert described(table) == words
    held = hold_out(table, ["b"])
    assert described(held).endswith(" images (14 more in held-out ones) of 2 classes in 1 domain")
    assert training_counts(held).tolist() == counts(table)[0, :, 0].tolist()
    assert [counted(n, "image") for n in (0, 1, 1000)] == ["0 images", "1 image", "1,000 images"]


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ((9, 1), None),
        ((10, 1), "'y' has 1 training image, 'x' has 10"),
        ((2, 2000), "'x' has 2 training images, 'y' has 2,000"),
        ((11, 0), "'y' has 0 training images, 'x' has 11"),
        ((10, 0), "'y' has 0 training images, 'x' has 10"),
        ((9, 0), None),
    ],
)
def test_the_smallest_class_is_named_if_another_is_ten_times_as_large(sizes, line, monkeypatch, table):
    monkeypatch.setattr("metalora.data.counts.training_counts", lambda table: np.array(sizes))
    assert imbalance(table) == line
