"""Accuracy of queries against a gallery, and its names in reports and metrics."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from metalora.evaluate.knn import KnnResult


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of queries against a gallery.

    Attributes:
        knn: k-NN accuracies.
        linear: Accuracy of a linear classifier fitted to the gallery, in [0, 1].
        linear_right: (m,) whether that classifier is right for each query.
    """

    knn: KnnResult
    linear: float
    linear_right: Tensor = field(compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the accuracies as plain values for JSON."""
        return {**self.knn.as_dict(), "linear": self.linear}


def as_report(accuracies: dict[str, Accuracy]) -> dict[str, Any]:
    """Return the accuracies in the form of ``knn.json``; those of held-out domains, if any, are under ``holdout``."""
    report = accuracies["test"].as_dict()
    if "holdout" in accuracies:
        report["holdout"] = {
            "seen": accuracies["holdout"].as_dict(),
            "unseen": accuracies["holdout/unseen"].as_dict(),
        }
    return report


def metrics(split: str, result: KnnResult) -> dict[str, float]:
    """Return k-NN accuracies by their MLflow names: ``val/knn5``, ``val/knn5/<domain>``, ``val/knn5_weighted``."""
    named = {}
    for vote, suffix in (("uniform", ""), ("weighted", "_weighted")):
        for k, accuracy in result.overall[vote].items():
            named[f"{split}/knn{k}{suffix}"] = accuracy
        for domain, votes in result.by_domain.items():
            named.update({f"{split}/knn{k}{suffix}/{domain}": value for k, value in votes[vote].items()})
    return named
