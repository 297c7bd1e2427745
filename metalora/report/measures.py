"""The measures of a training's result, and what they warn of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STEADY = 2.0  # standard errors beyond which a difference is told


@dataclass(frozen=True)
class Measure:
    """An accuracy before and after the training, in [0, 1].

    Attributes:
        name: Name of the measure.
        original: That of the backbone without adapters; None if it has none.
        adapted: That of the adapted backbone; None for what depends on the data alone.
        paired: Standard error of the gain on the same images; None if it is not known.
    """

    name: str
    original: float | None
    adapted: float | None
    paired: float | None = None

    def error(self, images: int) -> float:
        """Return the standard error of the gain; if it is not known, as if each was measured on images of its own.

        That is sqrt(p (1 - p) / n + q (1 - q) / n), which is more than on the same images.
        """
        if self.paired is not None:
            return self.paired
        return math.sqrt(sum(p * (1 - p) / max(1, images) for p in (self.original, self.adapted) if p is not None))


def measures(report: Mapping[str, Any]) -> list[Measure]:
    """Return the measures over all test images: k-NN at the largest K, a linear and the trained classifier, chance.

    Args:
        report: The content of ``knn.json``; that of older code lacks the last, and errors.
    """
    errors = report.get("gain_error", {})
    before, after = report["original"], report["adapted"]
    k = max(before["overall"]["uniform"], key=int)
    found = [
        Measure(f"k-NN, K = {k}", before["overall"]["uniform"][k], after["overall"]["uniform"][k], errors.get("knn")),
        Measure("linear classifier on the features", before.get("linear"), after.get("linear"), errors.get("linear")),
        Measure("trained classifier", None, report["test_accuracy"]),
    ]
    return [*found, Measure("always the most frequent label", report["chance"], None)] if "chance" in report else found


def warnings_of(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each measure that fell, and for a classifier that is hardly better than chance."""
    lines = []
    images, chance = report["queries"], report.get("chance")
    for measure in measures(report):
        before, after = measure.original, measure.adapted
        if before is not None and after is not None and before - after > STEADY * measure.error(images):
            lines.append(f"{measure.name}: the training lowered it from {before:.1%} to {after:.1%}")
    accuracy = report["test_accuracy"]
    error = Measure("", chance, accuracy).error(images)
    if chance is not None and accuracy - chance <= STEADY * error:
        unsure = "these are too few images to tell whether it is better than chance"
        chancy = "no better than chance (more --epochs, another --lr? or, if val/loss rose, --keep best)"
        lines.append(
            f"the trained classifier is right for {accuracy:.1%} of {images:,} test images, the most frequent label "
            f"alone for {chance:.1%}: {unsure if accuracy - chance > error else chancy}"
        )
    return lines
