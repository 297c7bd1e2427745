"""Train images that are changed at random when they are read.

What is drawn depends on the random seed, the epoch and an image's place in it alone: however many workers there are,
and wherever a run is resumed, it is the same. An image that an epoch shows twice is changed in two ways.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalora.data.augmentations import Augmentation, Mixture
from metalora.data.dataset import Batch, KeptDataset, SampleDataset
from metalora.data.sampler import BatchSampler
from metalora.data.table import IntArray

_AUGMENT = 4  # a stream of its own beside those of `metalora.data.sampler` and `metalora.data.episodes`


class Drawn(NamedTuple):
    """A train image to read: its position, the epoch, and its place in the epoch."""

    position: int
    epoch: int
    place: int


class Augmented(NamedTuple):
    """Changed samples side by side; a single sample has no leading dimension.

    Attributes:
        batch: The samples, with changed codes.
        plain: (B, ...) their codes as they were, if they are needed; else (B, 0).
        others: (B,) labels of the images that are mixed into them; their own label if none is.
        shares: (B,) float32, the share of their own label.
    """

    batch: Batch
    plain: Tensor
    others: Tensor
    shares: Tensor


@dataclass(frozen=True)
class Augment:
    """How train images are changed.

    Attributes:
        methods: The changes, in this order; mixtures come last.
        random_seed: What is drawn depends on it.
        plain: Whether the unchanged codes are needed too.
    """

    methods: tuple[Augmentation, ...]
    random_seed: int
    plain: bool


class AugmentedDataset(torch.utils.data.Dataset[Any]):
    """Samples of a data set, changed at random; item `Drawn` is an `Augmented` of one sample.

    Args:
        base: The data set; item i is a `Batch` of one sample, whose codes are an image (3, H, W) uint8.
        domain: (n,) domain of each sample.
        size: (3, H, W) of the images.
        augment: How they are changed.
    """

    def __init__(
        self, base: SampleDataset | KeptDataset, domain: IntArray, size: Sequence[int], augment: Augment
    ) -> None:
        self._base = base
        self._domain = domain
        self._same = {int(d): np.flatnonzero(domain == d) for d in np.unique(domain)}
        self._augment = augment
        self._transforms = [one.transform(*size[1:]) for one in augment.methods if not isinstance(one, Mixture)]
        self._mixers = [(one.probability, one.mixer()) for one in augment.methods if isinstance(one, Mixture)]

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, drawn: Drawn) -> Augmented:
        """Read a sample and change it.

        Raises:
            UserError: the sample cannot be read or decoded; the message names it.
        """
        sample = self._base[drawn.position]
        with _seeded([_AUGMENT, self._augment.random_seed, drawn.epoch, drawn.place]):
            codes, other, share = self._mixed(self._changed(sample.codes), sample.labels, drawn.position)
        plain = sample.codes if self._augment.plain else torch.empty(0, dtype=torch.uint8)
        return Augmented(sample._replace(codes=codes), plain, other, share)  # type: ignore[arg-type]

    def _changed(self, image: Tensor) -> Tensor:
        for transform in self._transforms:
            image = transform(image)
        return image

    def _mixed(self, image: Tensor, label: int, position: int) -> tuple[Tensor, int, Tensor]:
        """Return an image, perhaps mixed with another of its task, the other's label and the share of its own."""
        whole = torch.ones(())
        if not self._mixers:
            return image, label, whole
        probability, mixer = self._mixers[int(torch.randint(len(self._mixers), ()))]
        if float(torch.rand(())) >= probability:
            return image, label, whole
        same = self._same[int(self._domain[position])]
        other = self._base[int(same[int(torch.randint(len(same), ()))])]
        both = torch.stack([image, self._changed(other.codes)]).float()
        mixed, shares = mixer(both, torch.tensor([0, 1]))
        return mixed[0].round().to(image.dtype), int(other.labels), shares[0, 0].float()


@contextmanager
def _seeded(key: list[int]) -> Iterator[None]:
    """Seed torch's generator on the CPU within the block; `torch.manual_seed` is slow: it seeds all devices."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
    try:
        yield
    finally:
        generator.set_state(before)


class DrawnSampler(torch.utils.data.Sampler[list[Drawn]]):
    """Yields what a `BatchSampler` yields, each position with the epoch and its place in it."""

    def __init__(self, sampler: BatchSampler) -> None:
        self._sampler = sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[list[Drawn]]:
        epoch = self._sampler.epoch
        order = self._sampler.order(epoch)
        for places in self._sampler.places():
            yield [Drawn(int(order[place]), epoch, int(place)) for place in places]
