"""The t-SNE picture: what is drawn, and that odd input does not break it."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalora.errors import UserError
from metalora.report.plots import plot_tsne, sample_evenly


def _colours(path: Path) -> int:
    with Image.open(path) as image:
        assert image.size == (1430, 770)
        pixels = np.array(image.convert("RGB")).reshape(-1, 3)
    saturated = pixels[np.ptp(pixels.astype(int), axis=1) > 80]
    return len(np.unique(saturated // 32, axis=0))


@pytest.mark.parametrize(("tasks", "labels"), [(3, 4), (25, 15)])
def test_a_picture_is_drawn_and_pyplot_left_alone(tmp_path: Path, tasks: int, labels: int) -> None:
    generator = np.random.default_rng(0)
    task = np.arange(120) % tasks
    seeds = 4 * np.eye(tasks)[task] + generator.normal(size=(120, tasks))
    names = [f"label {number}" for number in generator.integers(0, labels, 120)]
    had_pyplot = "matplotlib.pyplot" in sys.modules

    plot_tsne(seeds, [f"task {number}" for number in task], names, tmp_path / "plots" / "tsne.png")

    assert _colours(tmp_path / "plots" / "tsne.png") >= 4
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


@pytest.mark.parametrize(
    "seeds",
    [
        np.ones((40, 6), dtype=np.float32),  # a fresh adapter's: all the identity
        np.random.default_rng(0).normal(size=(40, 1)),
        np.random.default_rng(0).normal(size=(2, 3)),
        np.random.default_rng(0).normal(size=(5, 90)),
    ],
    ids=["equal", "one number", "two points", "more numbers than points"],
)
def test_odd_seeds_are_drawn(tmp_path: Path, seeds: np.ndarray) -> None:
    names = ["a", "b"] * (len(seeds) // 2) + ["a"] * (len(seeds) % 2)
    plot_tsne(seeds, names, names, tmp_path / "tsne.png")
    assert (tmp_path / "tsne.png").stat().st_size > 1000


def test_points_are_taken_evenly() -> None:
    domains = ["large"] * 500 + ["middle"] * 60 + ["small"] * 10
    rows = sample_evenly(domains, 100, seed=0)
    assert Counter(domains[row] for row in rows) == {"large": 45, "middle": 45, "small": 10}
    assert len(set(rows.tolist())) == 100
    assert not np.array_equal(rows, sample_evenly(domains, 100, seed=1))
    assert len(sample_evenly(domains, 1500, seed=0)) == 570


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 2 seeds, got 1"):
        plot_tsne(np.zeros((1, 3)), ["a"], ["a"], tmp_path / "tsne.png")
    with pytest.raises(UserError, match="finite"):
        plot_tsne(np.full((2, 3), np.nan), ["a", "b"], ["a", "b"], tmp_path / "tsne.png")
