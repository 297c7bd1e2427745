"""Real images from an installed package: crops of scikit-learn's two sample photographs, as Parquet."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PHOTOGRAPHS = ("china", "flower")  # 640 x 427 pixels each
QUARTERS = ("upper left", "upper right", "lower left", "lower right")
SPLITS = ("train", "train", "train", "val", "test")
QUALITY = 90


def write_photos(file: Path, count: int, side: int) -> Path:
    """Write ``count`` JPEGs scaled to ``side``; domain = photograph, label = quarter that the crop is from."""
    from sklearn.datasets import load_sample_image

    photographs = [Image.fromarray(load_sample_image(f"{name}.jpg")) for name in PHOTOGRAPHS]
    generator = np.random.default_rng(0)
    columns: dict[str, list[str | bytes]] = {"image": [], "label": [], "domain": [], "split": []}
    for number in range(count):
        domain, quarter = number % 2, number // 2 % 4
        columns["image"].append(_crop(photographs[domain], quarter, side, generator))
        columns["label"].append(QUARTERS[quarter])
        columns["domain"].append(PHOTOGRAPHS[domain])
        columns["split"].append(SPLITS[number // 8 % len(SPLITS)])
    pq.write_table(pa.table(columns), file)
    return file


def _crop(photograph: Image.Image, quarter: int, side: int, generator: np.random.Generator) -> bytes:
    """Return a random square of a quarter, as JPEG bytes."""
    width, height = photograph.width // 2, photograph.height // 2
    size = int(generator.integers(height // 2, height))
    left = quarter % 2 * width + int(generator.integers(width - size))
    top = quarter // 2 * height + int(generator.integers(height - size))
    image = photograph.crop((left, top, left + size, top + size)).resize((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()
