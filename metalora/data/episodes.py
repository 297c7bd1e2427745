"""Batches of episodes: some classes, and the same number of images of each."""

import numpy as np

from metalora.data.sampler import BatchSampler
from metalora.data.table import IntArray
from metalora.errors import UserError

# a stream of its own beside those of `metalora.data.sampler`
_EPISODE = 3


class EpisodeSampler(BatchSampler):
    """Yields one rank's micro-batches as whole episodes of ``classes`` x ``images`` positions, class by class.

    An epoch has as many steps as with `BatchSampler`, but need not see every image. Classes are drawn without
    replacement, weighted by the square root of their number of images: between balanced and natural. A class with
    fewer than ``images`` images shows some of them twice. With ``one_task`` all episodes of a step are of one task; the
    tasks take turns.

    Args:
        label: (N,) label of each train image.
        domain: (N,) domain of each train image.
        batch_size: Images of one optimizer step, over all ranks and micro-batches.
        classes: Classes of an episode.
        images: Images of each class.
        one_task: Draw each episode from one task; else from the images of all tasks.
        seed: Seed of the order.
        accumulate: Micro-batches per optimizer step.
        rank: This process, from 0.
        world: Number of processes.

    Raises:
        UserError: a task (without ``one_task``: all together) has too few classes with two images, or ``batch_size`` is
            not a multiple of an episode's images times workers times micro-batches.
    """

    def __init__(
        self,
        label: IntArray,
        domain: IntArray,
        batch_size: int,
        *,
        classes: int,
        images: int,
        one_task: bool,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(domain, batch_size, seed=seed, accumulate=accumulate, rank=rank, world=world)
        self._classes, self._images = classes, images
        self._unit = classes * images
        if batch_size % (self._unit * world * accumulate):
            raise UserError(
                f"batch_size {batch_size} must be a multiple of {self._unit * world * accumulate}, for whole episodes: "
                f"{classes} classes x {images} images x {world} workers x {accumulate} micro-batches "
                "(--batch-size, --objective.classes, --objective.images)"
            )
        tasks = [np.flatnonzero(domain == d) for d in np.unique(domain)] if one_task else [np.arange(len(domain))]
        self._pools = [_by_class(rows, label) for rows in tasks]
        fewest = min(len(pool) for pool in self._pools)
        if fewest < classes:
            where = "a task" if one_task else "the train split"
            raise UserError(
                f"an episode of {classes} classes exceeds the {fewest} labels of which {where} has two images: "
                "lower it (--objective.classes)"
            )

    def order(self, epoch: int) -> IntArray:
        """Return the positions of an epoch, episode after episode, (steps x batch_size,)."""
        episodes = []
        for step in range(self.steps):
            generator = np.random.default_rng([_EPISODE, self._seed, epoch, step])
            pool = self._pools[(epoch * self.steps + step) % len(self._pools)]
            episodes += [self._episode(pool, generator) for _ in range(self._batch_size // self._unit)]
        return np.concatenate(episodes)

    def _episode(self, pool: list[IntArray], generator: np.random.Generator) -> IntArray:
        weight = np.sqrt([len(members) for members in pool])
        drawn = generator.choice(len(pool), self._classes, replace=False, p=weight / weight.sum())
        return np.concatenate([np.resize(generator.permutation(pool[c]), self._images) for c in drawn])


def _by_class(rows: IntArray, label: IntArray) -> list[IntArray]:
    """Return the rows of each label that has two or more of them."""
    members = [rows[label[rows] == c] for c in np.unique(label[rows])]
    return [some for some in members if len(some) > 1]
