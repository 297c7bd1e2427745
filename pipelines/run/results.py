"""The results of a finished training in its run's folder: copied, drawn and uploaded."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from metalora.data import Table, decode
from metalora.evaluate.predictions import Predictions, read_predictions
from metalora.evaluate.seeds import read_seeds
from metalora.files import atomic_file, atomic_folder
from metalora.report.errors import SIDE, draw_confusion, draw_worst, write_classes
from metalora.report.plots import plot_tsne
from metalora.tracking.tracker import Tracker
from metalora.train.results import ADAPTER, KNN, PREDICTIONS, SEEDS
from pipelines.run.folder import CONFIG, only_shows


def copy_results(results: Path, folder: Path, say: Callable[[str], None], table: Table | None = None) -> None:
    """Copy a finished training's results from its last checkpoint into its folder, and draw seeds and mistakes.

    Earlier results are replaced; links are not followed.

    Args:
        results: The folder of the checkpoint.
        folder: The run's folder.
        say: Called with a message if something cannot be drawn.
        table: The images, if mistakes are to be shown.
    """
    with atomic_folder(folder / ADAPTER) as adapter:
        shutil.copytree(results / ADAPTER, adapter, dirs_exist_ok=True)
    _copy(results / KNN, folder / KNN)
    if (results / SEEDS).is_file():
        place = (folder / SEEDS).parent
        if place.is_symlink():
            place.unlink()
        _copy(results / SEEDS, folder / SEEDS)
        seeds = read_seeds(folder / SEEDS)
        with only_shows("the picture of the seeds", say):
            plot_tsne(seeds.vectors, seeds.domains, seeds.labels, place / "tsne.png")
    if (results / PREDICTIONS).is_file():
        with atomic_folder((folder / PREDICTIONS).parent) as place:
            _describe_predictions(results / PREDICTIONS, place, say, table)


def _describe_predictions(file: Path, place: Path, say: Callable[[str], None], table: Table | None) -> None:
    """Put predictions into a folder, with a table of classes and pictures."""
    shutil.copyfile(file, place / file.name)
    predictions = read_predictions(file)
    write_classes(place / "classes.csv", predictions)
    with only_shows("the picture of confusions", say):
        draw_confusion(place / "confusion.png", predictions)
    if table is not None:
        with only_shows("the picture of mistakes", say):
            draw_worst(place / "mistakes.png", predictions, _images_of(table, predictions))


def _images_of(table: Table, predictions: Predictions) -> Callable[[int], Any]:
    """Return a function that reads a predicted image, small, by its number in the predictions."""
    keys = zip(table.id.tolist(), table.domain.tolist(), table.label.tolist(), strict=True)
    rows = {(str(name), table.domains[d], table.labels[y]): row for row, (name, d, y) in enumerate(keys)}

    def image(number: int) -> Any:
        row = rows[predictions.ids[number], predictions.domains[number], predictions.labels[number]]
        whole = decode(table.read(row), table.name(row), table.max_pixels)
        return np.asarray(ImageOps.contain(whole, (SIDE, SIDE), Image.Resampling.BILINEAR))

    return image


def upload_results(tracker: Tracker, folder: Path) -> None:
    """Upload the results in a finished training's folder to the tracker."""
    parts = (folder / CONFIG, folder / KNN, folder / ADAPTER, (folder / SEEDS).parent, (folder / PREDICTIONS).parent)
    for path in parts:
        if path.exists():
            tracker.artifact(path)


def _copy(source: Path, target: Path) -> None:
    with atomic_file(target) as file:
        shutil.copyfile(source, file)
