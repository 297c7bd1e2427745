"""Data loaders: a data set, its order, and the processes that decode it."""

import multiprocessing
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from metalora.data.augmented import DrawnSampler
from metalora.data.dataset import SampleDataset
from metalora.data.sampler import BatchSampler


def train_loader(dataset: Dataset[Any], sampler: BatchSampler | DrawnSampler, loader_workers: int) -> DataLoader[Any]:
    """Build the loader of one rank's micro-batches.

    It yields `Batch`es, or `Augmented` ones. ``set_position`` of the `BatchSampler` between two iterations sets where
    the next one begins; skipped images are not read.

    Args:
        dataset: The train images.
        sampler: The order and the position; made for this data set's domains and kind.
        loader_workers: Decoding processes; 0 decodes in this one.
    """
    return DataLoader(
        dataset, batch_sampler=sampler, persistent_workers=loader_workers > 0, **_settings(loader_workers)
    )


def evaluation_loader(
    dataset: SampleDataset, batch_size: int, loader_workers: int, rank: int = 0, world: int = 1
) -> DataLoader[Any]:
    """Build the loader of one rank's contiguous share of a data set, in order.

    Of n items, rank r gets those from ``r * ceil(n / world)`` up to ``(r + 1) * ceil(n / world)``. The last ranks
    may get fewer items, or none.

    Args:
        dataset: The images.
        batch_size: Images per batch; the last batch may have fewer.
        loader_workers: Decoding processes; 0 decodes in this one.
        rank: This process, from 0.
        world: Number of processes.
    """
    share = share_of(len(dataset), rank, world)
    shard = range(share.start, share.stop)
    return DataLoader(dataset, batch_size=batch_size, sampler=shard, **_settings(loader_workers))


def share_of(count: int, rank: int, world: int) -> slice:
    """Return a rank's contiguous share of ``count`` items; see `evaluation_loader`."""
    share = -(-count // world)
    return slice(min(rank * share, count), min((rank + 1) * share, count))


def count_loader_workers(asked: int | None, cpus: float) -> int:
    """Return the number of decoding processes of a worker: the number asked for, or one less than its CPUs, at most 8.

    With fewer than 4 CPUs the default is 0: starting processes would take longer than they save.
    """
    if asked is not None:
        return asked
    return min(8, int(cpus) - 1) if cpus >= 4 else 0


def _settings(loader_workers: int) -> dict[str, Any]:
    return {
        "num_workers": loader_workers,
        "multiprocessing_context": _context() if loader_workers else None,
        "pin_memory": torch.cuda.is_available(),
        # else each iteration draws from torch's global generator
        "generator": torch.Generator().manual_seed(0),
    }


def _context() -> BaseContext:
    # plain fork is unsafe beside the threads of Ray and Arrow; a server that has imported torch once
    # starts workers in a fraction of the seconds that spawn takes, which matters once an epoch
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([SampleDataset.__module__])
    return context
