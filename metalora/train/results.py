"""The results of a training's test: accuracies, predictions and seeds, and the files that hold them.

Shapes: n gallery images, m queries, D features, C classes, S numbers of a seed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalora.config import EvaluateConfig
from metalora.data.table import SPLITS, Table
from metalora.evaluate.accuracy import Accuracy
from metalora.evaluate.knn import KnnResult, knn_accuracy
from metalora.evaluate.linear import linear_hits
from metalora.evaluate.predictions import Predictions, write_predictions
from metalora.evaluate.seeds import write_seeds
from metalora.models.model import MetaLoRAModel
from metalora.models.persist import save

KNN, ADAPTER, SEEDS, PREDICTIONS = "knn.json", "adapter", "seeds/seeds.parquet", "predictions/test.parquet"


def has_results(folder: Path) -> bool:
    """Tell whether a checkpoint holds the results of a finished training beside the state."""
    return (folder / KNN).is_file()


class Embedded(NamedTuple):
    """Images of a table as a network sees them.

    Attributes:
        rows: (N,) their rows of the table.
        features: (N, D) their features.
        scores: (N, C) the classifier's scores, if they are known.
    """

    rows: Tensor
    features: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Scorer:
    """Measures the accuracy of features.

    Attributes:
        settings: How accuracy is measured.
        table: The images.
        device: Where it is computed.
    """

    settings: EvaluateConfig
    table: Table
    device: torch.device

    def labels(self, rows: Tensor) -> Tensor:
        """Return the labels of rows (N,)."""
        return torch.from_numpy(self.table.label[rows.numpy()])

    def knn(self, gallery: Embedded, queries: Embedded) -> KnnResult:
        """Measure the k-NN accuracy of queries against a gallery."""
        return knn_accuracy(
            gallery.features.to(self.device),
            self.labels(gallery.rows).to(self.device),
            queries.features.to(self.device),
            self.labels(queries.rows).to(self.device),
            torch.from_numpy(self.table.domain[queries.rows.numpy()]).to(self.device),
            domains=self.table.domains,
            classes=len(self.table.labels),
            k=self.settings.knn,
            metric=self.settings.knn_metric,
            temperature=self.settings.knn_temperature,
        )

    def accuracies(self, parts: list[Embedded]) -> dict[str, Accuracy]:
        """Return, by the prefix of their metrics, the accuracies of galleries and queries.

        Args:
            parts: The gallery and the queries; then, if any, those of the held-out domains.
        """
        found = {"test": self._accuracy(parts[0], parts[1])}
        if len(parts) > 2:
            found["holdout"] = self._accuracy(parts[0], parts[3])
            found["holdout/unseen"] = self._accuracy(parts[2], parts[3])
        return found

    def _accuracy(self, gallery: Embedded, queries: Embedded) -> Accuracy:
        right = linear_hits(
            gallery.features.to(self.device),
            self.labels(gallery.rows).to(self.device),
            queries.features.to(self.device),
            self.labels(queries.rows).to(self.device),
        )
        return Accuracy(self.knn(gallery, queries), float(right.double().mean()), right.cpu())

    def predictions(self, queries: Embedded) -> Predictions:
        """Return what the trained classifier predicts for queries."""
        table, rows = self.table, queries.rows.numpy()
        assert queries.scores is not None
        probabilities, predicted = queries.scores.float().softmax(1).max(1)
        return Predictions(
            [str(name) for name in table.id[rows]],
            [table.domains[d] for d in table.domain[rows]],
            [table.labels[y] for y in table.label[rows]],
            [table.labels[y] for y in predicted.tolist()],
            probabilities.numpy().astype(np.float32),
        )


def gain_errors(original: Accuracy, adapted: Accuracy) -> dict[str, float]:
    """Return the standard errors of the gains in accuracy on the same n images, by measure: knn (largest K), linear.

    With d_i = 1 for an image that only the adapted backbone gets right, -1 for one that only the original does, and
    else 0: std(d) / sqrt(n).
    """
    pairs = {
        "knn": (original.knn.right, adapted.knn.right),
        "linear": (original.linear_right, adapted.linear_right),
    }
    return {
        name: float((after.double() - before.double()).std(correction=0) / len(before) ** 0.5)
        for name, (before, after) in pairs.items()
    }


def write_results(
    folder: Path,
    model: MetaLoRAModel,
    report: dict[str, Any],
    predictions: Predictions,
    seeds: Tensor | None,
) -> None:
    """Write the results into the folder of a checkpoint.

    Args:
        folder: The folder.
        model: The trained model.
        report: The content of `KNN`.
        predictions: Those of the test images.
        seeds: (m, S) seeds of the first m of these images, if the format has any.
    """
    save(model, folder / ADAPTER)
    (folder / KNN).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    write_predictions(folder / PREDICTIONS, predictions)
    if seeds is not None:
        count = len(seeds)
        write_seeds(
            folder / SEEDS,
            predictions.ids[:count],
            predictions.domains[:count],
            predictions.labels[:count],
            [SPLITS[2]] * count,
            seeds.numpy(),
            predicted=predictions.predicted[:count],
            probability=predictions.probability[:count],
        )
