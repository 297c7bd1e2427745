"""Backbones by name. Libraries: one file each, and its name in this line."""

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
