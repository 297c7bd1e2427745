"""Weights of classes that have few images."""

import numpy as np
import numpy.typing as npt

from metalora.data.table import IntArray


def class_weights(label: IntArray, domain: IntArray) -> npt.NDArray[np.float32]:
    """Return a weight for the loss of each class in each domain, so that all its classes count alike.

    As scikit-learn's "balanced", in each domain: w = N / (C n) with N images of C classes, n of them of this class.

    Args:
        label: (N,) label of each train image.
        domain: (N,) domain of each train image.

    Returns:
        Weights, (domains, labels); 0 for classes that a domain does not have.
    """
    counts = np.zeros((domain.max() + 1, label.max() + 1))
    np.add.at(counts, (domain, label), 1)
    images, classes = counts.sum(1, keepdims=True), (counts > 0).sum(1, keepdims=True)
    weights = images / np.maximum(1, classes * counts)
    return np.where(counts > 0, weights, 0).astype(np.float32)
