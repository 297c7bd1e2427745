"""Put a part of one image into another."""

from typing import Any

from metalora.config import setting
from metalora.data.augmentations.base import AUGMENTATIONS, Mixture
from metalora.registry import Field


@AUGMENTATIONS.register("cutmix")
class Cutmix(Mixture):
    """CutMix (arXiv 1905.04899): put a rectangle of another image of its task into an image.

    loss = s loss(y_1) + (1 - s) loss(y_2), s the share of the area that is left, drawn from Beta(alpha, alpha)
    """

    alpha: float = setting(
        default=1.0,
        gt=0,
        description="both parameters of the Beta distribution of the shares",
        words=("cutmix_alpha", "cutmix"),
    )
    probability: float = Field(default=1.0, ge=0, le=1, description="share of the images that are mixed")

    def mixer(self) -> Any:
        """Build torchvision's CutMix. See `Mixture.mixer`."""
        from torchvision.transforms import v2

        return v2.CutMix(alpha=self.alpha, num_classes=2)
