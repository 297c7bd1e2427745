"""Files of seeds that are damaged, or of another form."""

import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metalora.errors import UserError
from metalora.evaluate.seeds import read_seeds, write_seeds

COUNT = 40
SEEDS = np.random.default_rng(0).normal(size=(COUNT, 8)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    names = [f"i{i}" for i in range(COUNT)]
    write_seeds(tmp_path / "seeds.parquet", names, names, names, ["test"] * COUNT, SEEDS)
    return tmp_path / "seeds.parquet"


def test_flipped_bits_are_noticed_or_change_nothing(path):
    whole, generator, refused = path.read_bytes(), random.Random(0), []
    for _ in range(200):
        data = bytearray(whole)
        place = generator.randrange(len(data) * 3 // 4)  # the pages; the footer has no checksum
        data[place] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        try:
            assert np.array_equal(read_seeds(path).vectors, SEEDS)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"seed": pa.array([[1.0, 2.0]] * 2)}, r"column 'seed' is of type 'list<.*double>'; wanted: a list of float32"),
        ({"seed": pa.array([[1.0], None], pa.list_(pa.float32(), 1))}, "Expected all lists to be of size=1"),
        ({"seed": pa.array([[1.0], [None]], pa.list_(pa.float32(), 1))}, "column 'seed' has a null"),
        ({"seed": pa.nulls(2, pa.list_(pa.float32(), 2**21))}, "wanted: a list of float32"),
        ({"id": pa.array([1, 2])}, "column 'id' is of type 'int64'; wanted: string"),
        ({"label": pa.array(["x", None])}, "column 'label' has a null"),
        ({"split": None}, "it has 0 columns 'split'; wanted: one"),
        ({"id": pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"x"]).buffers())}, "utf-8"),
    ],
)
def test_another_form_is_named(tmp_path, columns, message):
    table = {n: pa.array(["a", "b"]) for n in ("id", "domain", "label", "split")}
    table |= {"seed": pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1))} | columns
    pq.write_table(pa.table({n: c for n, c in table.items() if c is not None}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=rf"seeds '.*x\.parquet' cannot be read: .*{message}"):
        read_seeds(tmp_path / "x.parquet")


def test_no_rows_no_file_and_rows_without_end(path, tmp_path, monkeypatch):
    pq.write_table(pq.read_table(path).slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="it has no rows"):
        read_seeds(tmp_path / "none.parquet")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(UserError, match="it is no file"):
            read_seeds(tmp_path / name)
    count = 10**5
    write_seeds(path, ["a"] * count, ["a"] * count, ["a"] * count, ["test"] * count, np.zeros((count, 16)))
    assert len(read_seeds(path).ids) == count
    monkeypatch.setenv("METALORA_LIMITS", "rows_bytes=1e6")
    with pytest.raises(UserError, match="hold the same rows again and again"):
        read_seeds(path)
