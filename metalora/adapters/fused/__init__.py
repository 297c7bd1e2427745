"""Adapted convolutions fused with the frozen batch norm, residual and ReLU that follow them."""

from metalora.adapters.fused.ops import refusal
from metalora.adapters.fused.rewrite import fuse

__all__ = ["fuse", "refusal"]
