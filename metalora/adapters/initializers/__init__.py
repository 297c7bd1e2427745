"""Initializers, the values that adapters begin with: one file each, and its name in the first line here."""

from metalora.adapters.initializers import lora
from metalora.adapters.initializers.base import INITIALIZERS, Facts, Initializer, fill_layers

__all__ = ["INITIALIZERS", "Facts", "Initializer", "fill_layers", "lora"]
