"""Hide a part of each image."""

from typing import Any

from metalora.data.augmentations.base import AUGMENTATIONS, Augmentation
from metalora.registry import Field


@AUGMENTATIONS.register("erase")
class Erase(Augmentation):
    """Blacken a rectangle of 2 to 33 % of the area with probability p (arXiv 1708.04896)."""

    probability: float = Field(default=0.25, ge=0, le=1, description="share p of the images with a rectangle")

    def transform(self, height: int, width: int) -> Any:
        """Build torchvision's random erasing. See `Augmentation.transform`."""
        from torchvision.transforms import v2

        return v2.RandomErasing(self.probability)
