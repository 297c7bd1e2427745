import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from metalora.config import DataConfig
from metalora.data import Table, load_table

Rows = list[dict[str, Any]]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "empty_cache"))
    return tmp_path / "empty_cache"


@pytest.fixture(scope="session")
def embedded(cache: Path) -> Table:
    return load_table(DataConfig())


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    """Make a 4x4 PNG whose content follows from a number."""

    def make(number: int) -> bytes:
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, format="PNG")
        return file.getvalue()

    return make


@pytest.fixture
def make_tree(tmp_path: Path, png: Callable[[int], bytes]) -> Callable[..., Path]:
    """Write root/domain/class/image; ``counts`` maps "domain/class" to a number of images."""

    def make(counts: dict[str, int], name: str = "tree") -> Path:
        root = tmp_path / name
        for number, (place, count) in enumerate(counts.items()):
            (root / place).mkdir(parents=True)
            for i in range(count):
                (root / place / f"{i:03}.png").write_bytes(png(1000 * number + i))
        return root

    return make


@pytest.fixture(scope="session")
def make_rows(png: Callable[[int], bytes]) -> Callable[..., Rows]:
    """Make rows of the Parquet schema: 4 train, 1 val, 2 test images a domain and label."""

    def make(domains: str = "ab", labels: str = "xy") -> Rows:
        splits = ["train"] * 4 + ["val"] + ["test"] * 2
        places = [(d, x, s) for d in domains for x in labels for s in splits]
        return [
            {"image": png(i), "label": x, "domain": d, "split": s, "id": f"i{i}"} for i, (d, x, s) in enumerate(places)
        ]

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write rows as a Parquet file and return its path."""

    def write_rows(rows: Rows, name: str = "data.parquet") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
        return str(path)

    return write_rows
