"""A small data set of two domains and two labels, as a folder of images and as rows of a table."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metalora.config import from_dict
from metalora.data import decode, load_table
from metalora.data.table import SPLITS, Table

DOMAINS, LABELS = ("paper", "slate"), ("circle", "cross")


def draw(seed: int, side: int = 12) -> Image.Image:
    """Return an image that follows from a number."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def write_tree(folder: Path, images: int = 4, suffix: str = ".png") -> Path:
    """Write ``folder/domain/label/image``."""
    for number, (domain, label) in enumerate((d, name) for d in DOMAINS for name in LABELS):
        (folder / domain / label).mkdir(parents=True)
        for image in range(images):
            draw(100 * number + image).save(folder / domain / label / f"{image}{suffix}")
    return folder


def rows() -> list[tuple[str, str, str, int]]:
    """Return domain, label, split and number of each image of a table."""
    names = [(domain, label, split) for domain in DOMAINS for label in LABELS for split in SPLITS]
    return [(*name, number) for number, name in enumerate(names)]


def data_settings(data: Path) -> Any:
    """Return the settings that name a data set."""
    return from_dict({"data": {"data": str(data)}}).data


def everything(table: Table) -> object:
    """Return all that a table says, with the pixels of its images."""
    pixels = [np.asarray(decode(table.read(row), table.name(row), table.max_pixels)) for row in range(len(table))]
    return (
        table.label,
        table.domain,
        table.split,
        list(table.id),
        table.labels,
        table.domains,
        table.fingerprint,
        pixels,
    )


def read_all(data: Path) -> object:
    """Load a data set as a training does, and read all of it."""
    torch.manual_seed(0)
    return everything(load_table(data_settings(data)))
