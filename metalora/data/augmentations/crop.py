"""Show a part of each image."""

from typing import Any

from metalora.data.augmentations.base import AUGMENTATIONS, Augmentation
from metalora.registry import Field


@AUGMENTATIONS.register("crop")
class Crop(Augmentation):
    """Cut out a part of random size, place and aspect ratio (3/4 to 4/3), and enlarge it (Szegedy, arXiv 1409.4842).

    It is cut out of the image as the backbone sees it: what its own preprocessing cuts off does not come back.
    """

    least: float = Field(default=0.35, gt=0, le=1, description="smallest part, as a share of the image's area")

    def transform(self, height: int, width: int) -> Any:
        """Build torchvision's random resized crop. See `Augmentation.transform`."""
        from torchvision.transforms import v2

        return v2.RandomResizedCrop((height, width), scale=(self.least, 1.0), antialias=True)
