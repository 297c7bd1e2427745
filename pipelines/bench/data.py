"""Measure the images per second that are decoded, resized and changed for training, by number of loader processes."""

import io
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from metalora.build import build_networks
from metalora.config import Config
from metalora.data import BatchSampler, SampleDataset, Table, decode, load_table, train_loader
from metalora.data.augmentations import AUGMENTATIONS
from metalora.data.augmented import Augment, AugmentedDataset, DrawnSampler
from metalora.data.dataset import KeptDataset
from metalora.data.table import IntArray
from metalora.errors import UserError, given_as
from metalora.models.backbones.base import Backbone
from metalora.train.kept import CodeArray
from pipelines.bench.common import Result, Size, Timing, publish, read_options, timed
from pipelines.bench.training import training_settings, with_photos

SIZES = {
    "repeats": Size("rounds", 2, 3),
    "images": Size("photographs, if they are the data", 400, 2000),
    "max-workers": Size("largest number of loader processes", 2, os.cpu_count() or 1),
}
KEPT = "kept"
NETWORK = "timm/resnet50"  # whose preprocessing is measured, unless another is given


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora bench data``."""
    options = read_options("data", __doc__ or "", SIZES, arguments, sections=("backbone", "data"))
    if not options.small and not hasattr(options, "backbone"):
        options.backbone = NETWORK
    config = training_settings(options)
    with tempfile.TemporaryDirectory() as scratch:
        config = with_photos(config, options, Path(scratch))
        table = load_table(config.data)
        backbone, _ = build_networks(config, print)
        counts = [0, *(n for n in (2**i for i in range(16)) if n <= options.max_workers)]
        images, times = measure(config, table, backbone, counts, options.repeats)
    publish(_result(config, backbone, images, counts, times), options)


def measure(
    config: Config, table: Table, backbone: Backbone, counts: Sequence[int], repeats: int
) -> tuple[int, dict[str, Timing]]:
    """Time an epoch of the train loader by number of processes, the same without loader, and the bare decoding.

    Returns:
        The number of images, and the times by number of processes, ``no loader`` and ``bare``.
    """
    rows = table.rows("train")
    if len(rows) < config.data.batch_size:
        raise UserError(f"batch_size {config.data.batch_size} is more than the {len(rows)} images of the train split"
                        f"{given_as('batch_size')}")  # fmt: skip
    sampler = BatchSampler(table.domain[rows], config.data.batch_size, seed=0, sampling="natural")
    dataset = SampleDataset(table, rows, partial(backbone.inputs.encode, most=table.max_pixels))
    encoded = [table.read(int(rows[i])) for batch in sampler for i in batch]
    calls: dict[str, Callable[[], Any]] = {
        "bare": lambda: [_bare(data) for data in encoded],
        "no loader": lambda: [backbone.inputs.pixels(decode(data, "")) for data in encoded],
    }
    # Processes stay from round to round, as they do from epoch to epoch.
    calls |= {str(n): _consume(train_loader(dataset, sampler, n)) for n in counts}
    calls |= _changes(table, rows, sampler, np.stack([dataset[i].codes.numpy() for i in range(len(rows))]))
    return len(encoded), timed(calls, repeats)


def _changes(table: Table, rows: IntArray, sampler: BatchSampler, codes: CodeArray) -> dict[str, Callable[[], None]]:
    """Return, by name, epochs in this process of images that are in memory: as they are (KEPT), and changed."""
    every = np.zeros((len(table), *codes.shape[1:]), codes.dtype)
    every[rows] = codes
    kept = KeptDataset(table, rows, every)
    calls = {KEPT: _consume(train_loader(kept, sampler, 0))}
    for name in AUGMENTATIONS:
        augment = Augment((AUGMENTATIONS.make(name),), 0, plain=False)
        changed = AugmentedDataset(kept, table.domain[rows], codes.shape[1:], augment)
        calls[f"augment {name}"] = _consume(train_loader(changed, DrawnSampler(sampler), 0))
    return calls


def _bare(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _consume(loader: DataLoader[Any]) -> Callable[[], None]:
    def consume() -> None:
        for _ in loader:
            pass

    return consume


def _result(config: Config, backbone: Backbone, images: int, counts: Sequence[int], times: dict[str, Timing]) -> Result:
    cores = os.cpu_count() or 1
    bare = images / times["bare"].median
    rows: list[dict[str, Any]] = []
    for name in times:
        busy = min(max(1, int(name)), cores) if name.isdecimal() else 1
        rate = images / times[name].median
        most = images / times[KEPT].median if name == KEPT or name.startswith("augment") else busy * bare
        rows.append(
            {
                "loader processes": name,
                "images/s": rate,
                "floor images/s": most,
                "to floor": rate / most,
                "spread": times[name].spread,
            }
        )
    side = backbone.input_size[1]
    what = f"{images} train images of {Path(config.data.data).name}"
    network = f"{config.backbone.backbone} ({side} x {side})"
    measured = (
        f"Images per second of {what}, decoded, resized for {network} and collated in batches of "
        f"{config.data.batch_size}, by number of loader processes (0: in the trainer's own); "
        '"no loader" only decodes and resizes. "kept" reads images that are in memory, in one process; "augment ..." '
        "changes these."
    )
    floor = (
        'Pillow decoding the same bytes to RGB in one process, and nothing else ("bare"), times the processes that '
        f"have a core of their own ({cores} cores). Of changes: the images that are kept, unchanged."
    )
    best = max(images / times[str(n)].median for n in counts)
    return Result("data", measured, floor, rows, {"best images/s": best, "bare images/s": bare})
