"""One change of random strength."""

from typing import Any

from metalora.data.augmentations.base import AUGMENTATIONS, Augmentation


@AUGMENTATIONS.register("trivial_augment")
class TrivialAugment(Augmentation):
    """TrivialAugment (arXiv 2103.10158), wide: one of 14 changes of colour and shape, of random strength.

    Where colours tell the task or the class, it teaches the network to ignore them.
    """

    def transform(self, height: int, width: int) -> Any:
        """Build torchvision's TrivialAugmentWide. See `Augmentation.transform`."""
        from torchvision.transforms import v2

        return v2.TrivialAugmentWide()
