"""The base class of objectives: the loss of each sample, and the batches that it needs.

Shapes: B images of a micro-batch on this rank, D features, C classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metalora.data.sampler import BatchSampler, Sampling
from metalora.data.table import IntArray
from metalora.registry import Registry


@dataclass(frozen=True)
class Draw:
    """The facts by which a rank draws its micro-batches.

    Attributes:
        batch_size: Images of one optimizer step, over all ranks and micro-batches.
        seed: Random seed of the order.
        sampling: Images of all domains in equal shares ("balanced"), or as often as they occur ("natural").
        class_sampling: Likewise for the classes of each domain.
        accumulate: Micro-batches per optimizer step.
        rank: This process, from 0.
        world: Number of processes.
    """

    batch_size: int
    seed: int
    sampling: Sampling = "balanced"
    class_sampling: Sampling = "natural"
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    def share(self) -> dict[str, Any]:
        """Return what every sampler takes: the random seed, and this rank's share of the batches."""
        return {"seed": self.seed, "accumulate": self.accumulate, "rank": self.rank, "world": self.world}


class Objective(ABC):
    """The loss of each sample, and the batches that it needs; a frozen dataclass of its options.

    >>> from metalora.train.objectives import OBJECTIVES
    >>> OBJECTIVES.make({"name": "episodic", "classes": 4}).classes
    4

    Attributes:
        name: The name that the objective is registered by.
    """

    name: str

    @property
    def mixes(self) -> bool:
        """Whether the loss of an image that two are mixed in is the mean of both labels' losses, by their shares."""
        return False

    @property
    def one_task(self) -> bool:
        """Whether each step that `sampler` draws is of one task alone."""
        return False

    @abstractmethod
    def losses(self, features: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of each image, (B,).

        Args:
            features: (B, D), features of the adapted backbone.
            scores: (B, C), scores of the head.
            labels: (B,), labels of the images.
        """

    def sampler(self, label: IntArray, domain: IntArray, draw: Draw) -> BatchSampler:
        """Build the sampler of one rank's micro-batches.

        Args:
            label: (N,) label of each train image.
            domain: (N,) domain of each train image.
            draw: Batch size, order and this rank's share.

        Raises:
            UserError: these images do not allow the objective's batches.
        """
        by_class = label if draw.class_sampling == "balanced" else None
        return BatchSampler(domain, draw.batch_size, sampling=draw.sampling, label=by_class, **draw.share())


OBJECTIVES: Registry[Objective] = Registry("objective", "objective")
