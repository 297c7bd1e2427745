"""Decomposition formats: one file each, and its name in the first line here."""

from metalora.adapters.formats import cp, lora, multi_lora, tr
from metalora.adapters.formats.base import FORMATS, Format, Shape

__all__ = ["FORMATS", "Format", "Shape", "cp", "lora", "multi_lora", "tr"]
