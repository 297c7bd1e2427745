"""Seeds that images are given in place of their own."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
