"""Embedding images: each rank its share, every rank the whole result."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metalora.group import Group

FloatArray = npt.NDArray[np.float32]
PixelArray = npt.NDArray[np.uint8]
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def embed(
    function: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    batches: Iterable[Batch],
    group: Group,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Apply a function to all images of a split.

    Args:
        function: Maps images (B, 3, H, W), on the group's device, and their table rows (B,) to tensors (B, ...).
        batches: This rank's share: (images, labels, domains, rows).
        group: The ranks.

    Returns:
        The table rows (N,), and the function's results (N, ...), on the CPU, in rank order.
    """
    rows: list[Tensor] = []
    outputs: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for images, _, _, batch_rows in batches:
            results = function(images.to(group.device, non_blocking=True), batch_rows)
            outputs.append(tuple(result.detach().float() for result in results))
            rows.append(batch_rows)
    # A rank may have no share of a small split, and then does not know how many results there are.
    width = max(group.gather_objects(len(outputs[0]) if outputs else 0))
    columns = [torch.cat(column) for column in zip(*outputs, strict=True)]
    gathered = tuple(group.gather_rows(columns[i] if columns else None) for i in range(width))
    return group.gather_rows(torch.cat(rows) if rows else None), gathered


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
class GivenSeeds:
    """Seeds that images are given in place of their own.

    Attributes:
        seeds: (n, S).
        index: (N,) which of them, by table row; -1 where none is given.
    """

    seeds: Tensor
    index: Tensor

    @staticmethod
    def own(rows: Tensor, seeds: Tensor, table_size: int) -> "GivenSeeds":
        """Give each of some rows (n,) its own seed (n, S)."""
        index = torch.full((table_size,), -1)
        index[rows] = torch.arange(len(rows))
        return GivenSeeds(seeds, index)

    @staticmethod
    def of_tasks(rows: Tensor, seeds: Tensor, domain: Tensor) -> "GivenSeeds":
        """Give all rows of a task the mean seed of its support images.

        Args:
            rows: (n,) the support images' rows.
            seeds: (n, S) their seeds.
            domain: (N,) the task of every row of the table.
        """
        tasks, task = domain[rows].unique(return_inverse=True)
        means = torch.stack([seeds[task == t].mean(0) for t in range(len(tasks))])
        number = torch.full((int(domain.max()) + 1,), -1)
        number[tasks] = torch.arange(len(tasks))
        return GivenSeeds(means, number[domain])

    def shuffled(self, rows: Tensor, seed: int) -> "GivenSeeds":
        """Let some rows (n,) give one another their seeds, by a random permutation."""
        index = self.index.clone()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        index[rows] = self.index[rows[order]]
        return GivenSeeds(self.seeds, index)

    def get(self, rows: Tensor) -> Tensor:
        """Return the seeds (B, S) given to rows (B,)."""
        return self.seeds[self.index[rows]]


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
    images: PixelArray | None = None
