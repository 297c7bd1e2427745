"""Blend images."""

from typing import Any

from metalora.config import setting
from metalora.data.augmentations.base import AUGMENTATIONS, Mixture
from metalora.registry import Field


@AUGMENTATIONS.register("mixup")
class Mixup(Mixture):
    """Mixup (arXiv 1710.09412): blend an image with another one of its task; their losses are blended alike.

    x = s x_1 + (1 - s) x_2, loss = s loss(y_1) + (1 - s) loss(y_2), s from Beta(alpha, alpha)
    """

    alpha: float = setting(
        default=0.2,
        gt=0,
        description="both parameters of the Beta distribution of the shares",
        words=("mixup_alpha", "mixup"),
    )
    probability: float = Field(default=1.0, ge=0, le=1, description="share of the images that are mixed")

    def mixer(self) -> Any:
        """Build torchvision's mixup. See `Mixture.mixer`."""
        from torchvision.transforms import v2

        return v2.MixUp(alpha=self.alpha, num_classes=2)
