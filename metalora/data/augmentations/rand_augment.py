"""Several changes of one strength."""

from typing import Any

from metalora.data.augmentations.base import AUGMENTATIONS, Augmentation
from metalora.registry import Field


@AUGMENTATIONS.register("rand_augment")
class RandAugment(Augmentation):
    """RandAugment (arXiv 1909.13719): some of 14 changes of colour and shape, each of one strength.

    Where colours tell the task or the class, it teaches the network to ignore them.
    """

    operations: int = Field(default=2, ge=1, le=14, description="changes of each image")
    magnitude: int = Field(default=9, ge=0, le=30, description="strength, from 0 to 30")

    def transform(self, height: int, width: int) -> Any:
        """Build torchvision's RandAugment. See `Augmentation.transform`."""
        from torchvision.transforms import v2

        return v2.RandAugment(self.operations, self.magnitude)
