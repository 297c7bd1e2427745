"""Adapted convolutions with the frozen batch norm, residual and ReLU behind them, as one operation."""

from metalora.adapters.fused.ops import refusal
from metalora.adapters.fused.rewrite import fuse

__all__ = ["fuse", "refusal"]
