"""The base classes of augmentations, which change train images at random."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from metalora.registry import Registry


class Augmentation(ABC):
    """A random change of a train image; a frozen dataclass of its options.

    >>> from metalora.data.augmentations import AUGMENTATIONS
    >>> AUGMENTATIONS.make({"name": "flip", "probability": 1.0}).probability
    1.0

    Attributes:
        name: The name that the augmentation is registered by.
    """

    name: str

    @abstractmethod
    def transform(self, height: int, width: int) -> Any:
        """Build the change: a callable that maps an image, (3, H, W) uint8, to another of the same shape and dtype.

        It draws from torch's global generator on the CPU, which is seeded for each image. It must be picklable.

        Args:
            height: H, which the backbone takes.
            width: W, likewise.
        """


class Mixture(Augmentation):
    """A mixture of a train image with another one of the same task; a frozen dataclass of its options.

    Where settings name several mixtures, one of them is drawn for each image.

    Attributes:
        probability: Share of the images that are mixed.
    """

    probability: float

    @abstractmethod
    def mixer(self) -> Any:
        """Build the mixer: a callable that mixes two float images (2, 3, H, W) with the labels (2,), 0 and 1.

        It returns the mixed images (2, 3, H, W) and the shares of the labels in them, (2, 2); only the first of each
        are used. It draws as `Augmentation.transform` does.
        """

    def transform(self, height: int, width: int) -> Any:
        """Build the change that leaves a single image as it is."""
        return _as_it_is


def _as_it_is(image: Tensor) -> Tensor:
    return image


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", "augment", several=True)
