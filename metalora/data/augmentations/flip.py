"""Mirror images."""

from typing import Any, Literal

from metalora.data.augmentations.base import AUGMENTATIONS, Augmentation
from metalora.registry import Field


@AUGMENTATIONS.register("flip")
class Flip(Augmentation):
    """Mirror an image with probability p, left to right or upside down."""

    probability: float = Field(default=0.5, ge=0, le=1, description="share p of the images that are mirrored")
    direction: Literal["horizontal", "vertical"] = Field(
        default="horizontal", description="left to right (horizontal) or upside down (vertical)"
    )

    def transform(self, height: int, width: int) -> Any:
        """Build torchvision's flip. See `Augmentation.transform`."""
        from torchvision.transforms import v2

        flip = v2.RandomHorizontalFlip if self.direction == "horizontal" else v2.RandomVerticalFlip
        return flip(self.probability)
