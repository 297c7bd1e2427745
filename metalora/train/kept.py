"""Results that are computed once and kept: extractor features, and those that several trainings share."""

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
    """A cache of extractor features by table row; they depend on the image alone.

    Attributes:
        features: (N, F) features of all rows, on the CPU; undefined for rows that are not known.
        known: (N,) whether the row's features are known.
    """

    features: Tensor
    known: Tensor

    @staticmethod
    def of(rows: Tensor, features: Tensor, table_size: int) -> "ConditionCache":
        """Make a cache that knows the features (n, F) of the rows (n,)."""
        cache = ConditionCache(torch.zeros(table_size, features.shape[1]), torch.zeros(table_size, dtype=torch.bool))
        cache.features[rows] = features
        cache.known[rows] = True
        return cache

    def get(self, rows: Tensor) -> Tensor | None:
        """Return the features (B, F) of rows (B,), or None if a row is not known."""
        return self.features[rows] if bool(self.known[rows].all()) else None


@dataclass(frozen=True)
class Decoded:
    """The codes of all samples of a table, decoded where it was verified.

    Attributes:
        codes: (N, ...), by row of the table; nothing writes to them.
        fingerprint: That of the table.
    """

    codes: CodeArray
    fingerprint: str


@dataclass(frozen=True)
class Shared:
    """Results that trainings on the same images and the same frozen networks share, by row of the table.

    Nothing writes to these arrays, so that processes can share their memory.

    Attributes:
        original: (N, D) features of the backbone without adapters.
        conditions: (N, F) extractor features, by ``extractor_features``.
        images: (N, 3, H, W) pixels; None: each training decodes them itself.
    """

    original: FloatArray
    conditions: Mapping[str, FloatArray]
    images: CodeArray | None = None
