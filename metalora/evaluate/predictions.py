"""Predictions of labelled images: their file, and which classes are mistaken for which."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metalora.evaluate.sample_files import Form, read_samples, write_samples

Array = np.ndarray[Any, np.dtype[Any]]

_FORMS: dict[str, Form] = {
    "id": "text",
    "domain": "text",
    "label": "text",
    "predicted": "text",
    "probability": "number",
}


@dataclass(frozen=True)
class Predictions:
    """Predictions of N images.

    Attributes:
        ids: Id of each image.
        domains: Its domain.
        labels: Its label.
        predicted: The label that is predicted for it.
        probability: (N,) float32, how probable the classifier holds that label to be.
    """

    ids: Sequence[str]
    domains: Sequence[str]
    labels: Sequence[str]
    predicted: Sequence[str]
    probability: Array

    def __len__(self) -> int:
        return len(self.ids)

    def wrong(self, domain: str) -> list[int]:
        """Return the numbers of the images of a domain that are mistaken, the surest mistakes first."""
        found = [i for i in range(len(self)) if self.domains[i] == domain and self.labels[i] != self.predicted[i]]
        return sorted(found, key=lambda i: (-float(self.probability[i]), self.ids[i]))


@dataclass(frozen=True)
class ClassResult:
    """How the images of one class of one domain are predicted.

    Attributes:
        domain: The domain.
        label: The class.
        images: Number of its images.
        right: Number of those that are predicted right.
        instead: The label that most of the others get; empty if there are none.
        times: Number of those.
    """

    domain: str
    label: str
    images: int
    right: int
    instead: str
    times: int

    @property
    def accuracy(self) -> float:
        """The share of its images that are predicted right."""
        return self.right / self.images


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions to Parquet with columns id, domain, label, predicted (strings) and probability (float32)."""
    columns = (
        predictions.ids, predictions.domains, predictions.labels, predictions.predicted, predictions.probability
    )  # fmt: skip
    write_samples(path, dict(zip(_FORMS, columns, strict=True)))


def read_predictions(path: Path) -> Predictions:
    """Read a file that `write_predictions` wrote.

    Raises:
        UserError: as for `read_samples`.
    """
    found = read_samples(path, _FORMS, f"predictions {str(path)!r}")
    return Predictions(found["id"], found["domain"], found["label"], found["predicted"], found["probability"])


def class_results(predictions: Predictions) -> list[ClassResult]:
    """Return the result of each class of each domain that has images, in the order of their names."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for domain, label, predicted in zip(predictions.domains, predictions.labels, predictions.predicted, strict=True):
        counts.setdefault((domain, label), Counter())[predicted] += 1
    found = []
    for (domain, label), answers in sorted(counts.items()):
        others = sorted(
            ((times, name) for name, times in answers.items() if name != label), key=lambda t: (-t[0], t[1])
        )
        times, instead = others[0] if others else (0, "")
        found.append(ClassResult(domain, label, answers.total(), answers[label], instead, times))
    return found


def confusion(predictions: Predictions, domain: str, labels: Sequence[str]) -> Array:
    """Count, of the images of a domain, how often each label is taken for which.

    Args:
        predictions: The predictions.
        domain: The domain.
        labels: C labels; images of others are left out.

    Returns:
        Counts (C, C + 1), by label and predicted label; the last column counts all labels that are not listed.
    """
    place = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), dtype=int)
    for its, label, predicted in zip(predictions.domains, predictions.labels, predictions.predicted, strict=True):
        if its == domain and label in place:
            counts[place[label], place.get(predicted, len(labels))] += 1
    return counts
