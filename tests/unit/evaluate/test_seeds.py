"""The Parquet file of seeds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metalora.evaluate.seeds import write_seeds


def test_seeds_come_back(tmp_path: Path) -> None:
    path = tmp_path / "seeds" / "seeds.parquet"
    seeds = np.random.default_rng(0).normal(size=(3, 8))
    write_seeds(path, ["1", "2", "3"], ["a", "a", "b"], ["x", "y", "x"], ["test"] * 3, seeds[:, ::2])

    table = pq.read_table(path)

    assert table.column_names == ["id", "domain", "label", "split", "seed"]
    assert table.schema.field("seed").type == pa.list_(pa.float32(), 4)
    assert table["domain"].to_pylist() == ["a", "a", "b"]
    assert np.array_equal(np.array(table["seed"].to_pylist(), np.float32), seeds[:, ::2].astype(np.float32))


def test_columns_of_different_lengths_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "seeds.parquet"
    with pytest.raises(pa.ArrowInvalid):
        write_seeds(path, ["1"], ["a", "b"], ["x", "y"], ["test"] * 2, np.zeros((2, 4)))
    assert not list(tmp_path.iterdir())
