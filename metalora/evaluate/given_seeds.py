"""Seeds that images are given in place of their own."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GivenSeeds:
    """A given seed for each image, used in place of its own.

    Attributes:
        seeds: (n, S).
        index: (N,) index into ``seeds`` by table row; -1 for rows without a given seed.
    """

    seeds: Tensor
    index: Tensor

    @staticmethod
    def own(rows: Tensor, seeds: Tensor, table_size: int) -> "GivenSeeds":
        """Give each of the rows (n,) its seed (n, S)."""
        index = torch.full((table_size,), -1)
        index[rows] = torch.arange(len(rows))
        return GivenSeeds(seeds, index)

    @staticmethod
    def of_tasks(rows: Tensor, seeds: Tensor, domain: Tensor) -> "GivenSeeds":
        """Give all rows of a task the mean seed of the task's support images.

        Args:
            rows: (n,) rows of the support images.
            seeds: (n, S) seeds of the support images.
            domain: (N,) task of every row of the table.
        """
        tasks, task = domain[rows].unique(return_inverse=True)
        means = torch.stack([seeds[task == t].mean(0) for t in range(len(tasks))])
        number = torch.full((int(domain.max()) + 1,), -1)
        number[tasks] = torch.arange(len(tasks))
        return GivenSeeds(means, number[domain])

    def shuffled(self, rows: Tensor, seed: int) -> "GivenSeeds":
        """Return the seeds after a random permutation among the rows (n,)."""
        index = self.index.clone()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        index[rows] = self.index[rows[order]]
        return GivenSeeds(self.seeds, index)

    def get(self, rows: Tensor) -> Tensor:
        """Return the given seeds (B, S) of rows (B,)."""
        return self.seeds[self.index[rows]]
