"""Augmentations, random changes of train images: one file each, and its name in the first line here."""

from metalora.data.augmentations import crop, cutmix, erase, flip, mixup, rand_augment, trivial_augment
from metalora.data.augmentations.base import AUGMENTATIONS, Augmentation, Mixture

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Mixture",
    "crop",
    "cutmix",
    "erase",
    "flip",
    "mixup",
    "rand_augment",
    "trivial_augment",
]
