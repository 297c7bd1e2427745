"""What a classifier mistakes: a table of classes, confusions, and the surest mistakes as pictures."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalora.evaluate.predictions import ClassResult, Predictions, class_results, confusion
from metalora.files import atomic_file
from metalora.report.drawing import drawn, shown

Array = np.ndarray[Any, np.dtype[Any]]

LEAST_IMAGES = 3  # of a class, for its accuracy to be told
MOST_DOMAINS, MOST_CLASSES, MOST_WRONG = 12, 25, 8  # that a picture shows
SIDE = 96  # pixels of a mistaken image, at most
_TITLE = 26  # pixels above it
_STEP = SIDE + _TITLE + 6
_WRITTEN = 12  # classes up to which the counts are written into the squares


def write_classes(path: Path, predictions: Predictions) -> None:
    """Write the result of each class of each domain to CSV: images, right, accuracy, mostly taken for, how often."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["domain", "label", "images", "right", "accuracy", "mostly_taken_for", "times"])
        for one in class_results(predictions):
            writer.writerow(
                [one.domain, one.label, one.images, one.right, f"{one.accuracy:.4f}", one.instead, one.times]
            )


def weakest(predictions: Predictions, most: int = 3) -> list[ClassResult]:
    """Return the classes of a domain with the lowest accuracy, of those with some images and a mistake."""
    found = [one for one in class_results(predictions) if one.images >= LEAST_IMAGES and one.right < one.images]
    return sorted(found, key=lambda one: (one.accuracy, -one.images))[:most]


def draw_confusion(path: Path, predictions: Predictions) -> None:
    """Draw a matrix for each domain into a PNG: rows are labels, columns what they are taken for, shades the shares.

    Of many classes, those with the most mistakes are shown, and all others are one column.
    """
    domains = sorted(set(predictions.domains))
    results = class_results(predictions)
    mistakes: dict[str, int] = {}
    for one in results:
        mistakes[one.label] = mistakes.get(one.label, 0) + one.images - one.right
    every = sorted(set(predictions.labels) | set(predictions.predicted))
    labels = sorted(sorted(every, key=lambda name: (-mistakes.get(name, 0), name))[:MOST_CLASSES])
    names = [shown(label) for label in labels] + (["others"] if len(labels) < len(every) else [])
    several = domains[:MOST_DOMAINS]
    columns = min(3, len(several))
    rows = -(-len(several) // columns)
    side = 2.2 + 0.28 * len(names)
    with drawn(path, side * columns, side * rows + 0.6) as figure:
        for axes, domain in zip(figure.subplots(rows, columns, squeeze=False).flat, several, strict=False):
            counts = confusion(predictions, domain, labels)[:, : len(names)]
            axes.set_title(shown(domain), fontsize=10)
            _draw_matrix(axes, counts, names)
        for axes in figure.axes[len(several) :]:
            axes.set_axis_off()
        said = f"test images by label (rows) and what the trained classifier takes them for; {_left_out(domains)}"
        said += f"the {len(labels)} of {len(every)} classes with the most mistakes" if len(labels) < len(every) else ""
        figure.suptitle(said.strip(" ;"), fontsize=10, wrap=True)


def _draw_matrix(axes: Any, counts: Array, names: Sequence[str]) -> None:
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(counts)), names[: len(counts)], fontsize=7)
    if len(names) <= _WRITTEN:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=7, color=colour)


def draw_worst(path: Path, predictions: Predictions, image: Callable[[int], Array]) -> bool:
    """Draw the surest mistakes of each domain into a PNG, a row for each domain.

    Args:
        path: The PNG file.
        predictions: The predictions.
        image: Returns an image (h, w, 3) uint8, at most `SIDE` pixels a side, by its number in the predictions.

    Returns:
        Whether there are any; else nothing is drawn.
    """
    wrong = {domain: predictions.wrong(domain)[:MOST_WRONG] for domain in sorted(set(predictions.domains))}
    every = [domain for domain, numbers in wrong.items() if numbers]
    domains = every[:MOST_DOMAINS]
    if not domains:
        return False
    columns = max(len(wrong[domain]) for domain in domains)
    sheet = np.full((len(domains) * _STEP, columns * _STEP, 3), 255, dtype=np.uint8)
    with drawn(path, 1.5 * columns + 1.2, 1.5 * len(domains) + 0.6) as figure:
        axes = figure.subplots()
        for line, domain in enumerate(domains):
            for column, number in enumerate(wrong[domain]):
                picture = image(number)
                (height, width), (top, left) = picture.shape[:2], (line * _STEP + _TITLE, column * _STEP)
                y, x = top + (SIDE - height) // 2, left + (SIDE - width) // 2
                sheet[y : y + height, x : x + width] = picture
                label, taken = shown(predictions.labels[number]), shown(predictions.predicted[number])
                title = f"{label}\nas {taken}, {predictions.probability[number]:.0%}"
                axes.text(left + SIDE / 2, top - 2, title, fontsize=7, ha="center", va="bottom")
        axes.imshow(sheet)
        axes.set_xticks([])
        axes.set_yticks([line * _STEP + _TITLE + SIDE / 2 for line in range(len(domains))], map(shown, domains))
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        said = f"the surest mistakes of each domain: label, and what it was taken for{_left_out(every, '; ')}"
        figure.suptitle(said, fontsize=9, wrap=True)
    return True


def _left_out(domains: Sequence[str], before: str = "") -> str:
    more = len(domains) - MOST_DOMAINS
    return f"{before}{more} more domains are not shown; " if more > 0 else ""
