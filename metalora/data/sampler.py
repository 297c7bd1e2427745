"""The order in which images are trained on.

It depends on seed and epoch alone: however many workers there are, and wherever a run is resumed,
optimizer step t of epoch e sees the same images.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from metalora.data.table import IntArray
from metalora.errors import UserError, given_as

Sampling = Literal["balanced", "natural"]

# so that no two uses of a seed share a stream; 3 and 4 are those of episodes and augmentations
_NATURAL, _STREAM, _BLOCK = range(3)
_CLASS_STREAM, _CLASS_BLOCK = 5, 6


def epoch_order(domain: IntArray, seed: int, epoch: int, sampling: Sampling, label: IntArray | None = None) -> IntArray:
    """Return the order of an epoch, as positions of the train images.

    "natural": a permutation. "balanced": blocks of D positions, one of each of the D domains in random
    order (the last block may be cut). A domain's images follow one another in seeded permutations
    without end, and each epoch continues where the last one stopped. So large domains are seen in full over
    several epochs, and small ones several times in one epoch.

    With labels, a domain's images (for "natural": all images) follow one another in blocks in turn: one of each of
    their classes, whose images follow one another in the same way.

    Args:
        domain: (N,) domain of each train image.
        seed: Seed of the order.
        epoch: Number of the epoch, from 0.
        sampling: "balanced" or "natural".
        label: (N,) label of each train image, if classes are to be shown equally often.

    Returns:
        (N,) positions into ``domain``.
    """
    if sampling == "natural":
        if label is None:
            return np.random.default_rng([_NATURAL, seed, epoch]).permutation(len(domain))
        return _by_class(np.arange(len(domain)), label, [seed, 0], epoch, len(domain))
    domains = np.unique(domain)
    quota = -(-len(domain) // len(domains))
    taken = []
    for d in domains:
        members, key = np.flatnonzero(domain == d), [seed, int(d)]
        if label is None:
            taken.append(_take(members, [_STREAM, *key], epoch, quota))
        else:
            taken.append(_by_class(members, label, key, epoch, quota))
    return _in_blocks(np.stack(taken), [_BLOCK, seed, epoch])[: len(domain)]


def _by_class(members: IntArray, label: IntArray, key: list[int], epoch: int, count: int) -> IntArray:
    """Return ``count`` of some positions, with an equal share of each of their classes."""
    classes = np.unique(label[members])
    quota = -(-count // len(classes))
    taken = [_take(members[label[members] == c], [_CLASS_STREAM, *key, int(c)], epoch, quota) for c in classes]
    return _in_blocks(np.stack(taken), [_CLASS_BLOCK, *key, epoch])[:count]


def _in_blocks(taken: IntArray, key: list[int]) -> IntArray:
    """Return positions (groups, quota) as (groups * quota,): in blocks of one of each group, in random order."""
    groups, quota = taken.shape
    blocks = np.random.default_rng(key).permuted(np.tile(np.arange(groups), (quota, 1)), axis=1)
    order: IntArray = taken[blocks, np.arange(quota)[:, None]].reshape(-1)
    return order


def _take(members: IntArray, key: list[int], epoch: int, quota: int) -> IntArray:
    """Return elements epoch * quota onwards, ``quota`` of them, of the endless stream of some positions."""
    start = epoch * quota
    first, last = start // len(members), (start + quota - 1) // len(members)
    passes = [np.random.default_rng([*key, number]).permutation(members) for number in range(first, last + 1)]
    skip = start - first * len(members)
    return np.concatenate(passes)[skip : skip + quota]


class BatchSampler(torch.utils.data.Sampler[list[int]]):
    """Yields one rank's micro-batches of an epoch, as lists of positions into the train images.

    Optimizer step t trains on ``order[t * batch_size : (t + 1) * batch_size]``; micro-batch j is the
    j-th of ``accumulate`` contiguous pieces of that, and rank r has ``piece[r::world]``. The incomplete
    batch at the end of an epoch is dropped. A new sampler starts at epoch 0, step 0.

    Attributes:
        epoch: The epoch of the position.

    Args:
        domain: (N,) domain of each train image.
        batch_size: Images of one optimizer step, over all ranks and micro-batches.
        seed: Seed of the order.
        sampling: "balanced" or "natural", as for `epoch_order`.
        accumulate: Micro-batches per optimizer step.
        rank: This process, from 0.
        world: Number of processes.
        label: As for `epoch_order`.

    Raises:
        UserError: there are fewer images than ``batch_size``, or ``batch_size`` does not divide evenly.
    """

    def __init__(
        self,
        domain: IntArray,
        batch_size: int,
        *,
        seed: int,
        sampling: Sampling = "balanced",
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        label: IntArray | None = None,
    ) -> None:
        if len(domain) < batch_size:
            raise UserError(f"batch_size {batch_size} exceeds the {len(domain)} images of the train split: lower it "
                            "(--batch-size)")  # fmt: skip
        if batch_size % (world * accumulate):
            raise UserError(
                f"batch_size {batch_size} must be a multiple of workers x accumulate = {world} x {accumulate}"
                f"{given_as('batch_size', 'workers', 'accumulate')}"
            )
        self._domain = domain
        self._label = label
        self._batch_size = batch_size
        self._seed = seed
        self._sampling: Sampling = sampling
        self._unit = 1  # positions that stay together on a rank
        self._accumulate = accumulate
        self._rank = rank
        self._world = world
        self.set_position(epoch=0, step=0)

    @property
    def steps(self) -> int:
        """The number of optimizer steps in a whole epoch."""
        return len(self._domain) // self._batch_size

    def set_position(self, epoch: int, step: int) -> None:
        """Set the position: the next iteration yields the rest of ``epoch`` from optimizer step ``step`` on."""
        if not 0 <= step <= self.steps:
            raise ValueError(f"step {step} is not within an epoch of {self.steps} steps")
        self.epoch = epoch
        self._step = step

    def order(self, epoch: int) -> IntArray:
        """Return the positions of an epoch, batch after batch."""
        return epoch_order(self._domain, self._seed, epoch, self._sampling, self._label)

    def __len__(self) -> int:
        """Return the number of micro-batches from the position to the end of the epoch."""
        return (self.steps - self._step) * self._accumulate

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        for places in self.places():
            yield order[places].tolist()

    def places(self) -> Iterator[IntArray]:
        """Yield this rank's micro-batches from the position on, as places in `order`."""
        size = self._batch_size // self._accumulate
        for start in range(self._step * self._batch_size, self.steps * self._batch_size, size):
            units = np.arange(start, start + size).reshape(-1, self._unit)
            yield units[self._rank :: self._world].reshape(-1)
