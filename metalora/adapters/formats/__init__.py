"""Decomposition formats: one file each, one registration line each."""

from metalora.adapters.formats import cp, lora, multi_lora, tr
from metalora.adapters.formats.base import FORMATS, Format, build_format

__all__ = ["FORMATS", "Format", "build_format", "cp", "lora", "multi_lora", "tr"]
