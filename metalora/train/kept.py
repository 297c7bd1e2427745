"""What is computed once and kept: extractor features, and what several trainings share."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CodeArray = npt.NDArray[np.generic]  # of uint8, if the codes are images
FloatArray = npt.NDArray[np.float32]


@dataclass
class ConditionCache:
    """Extractor features by table row: they depend on the image alone.

    Attributes:
        features: (N, F) of the whole table, on the CPU; rows not known are undefined.
        known: (N,) which are.
    """

    features: Tensor
    known: Tensor

    @staticmethod
    def of(rows: Tensor, features: Tensor, table_size: int) -> "ConditionCache":
        """Make a cache of the features (n, F) of some rows (n,)."""
        cache = ConditionCache(torch.zeros(table_size, features.shape[1]), torch.zeros(table_size, dtype=torch.bool))
        cache.features[rows] = features
        cache.known[rows] = True
        return cache

    def get(self, rows: Tensor) -> Tensor | None:
        """Return the features (B, F) of rows (B,), or None if any is not known."""
        return self.features[rows] if bool(self.known[rows].all()) else None


@dataclass(frozen=True)
class Shared:
    """What trainings on the same images and the same frozen networks have in common, by row of the table.

    Nothing writes to these arrays, so that processes can look at the same memory.

    Attributes:
        original: (N, D) features of the backbone without adapters.
        conditions: (N, F) extractor features, by ``extractor_features``.
        images: (N, 3, H, W) pixels; None: each training decodes them itself.
    """

    original: FloatArray
    conditions: Mapping[str, FloatArray]
    images: CodeArray | None = None
