"""Backbones by name. Each library has one file, and its name in the import line here."""

from metalora.models.backbones import small_networks, timm_networks, torchvision_networks
from metalora.models.backbones.base import LIBRARIES, Backbone, Library
from metalora.models.backbones.build import build_backbone

__all__ = [
    "LIBRARIES",
    "Backbone",
    "Library",
    "build_backbone",
    "small_networks",
    "timm_networks",
    "torchvision_networks",
]
