"""Optimizers, which turn gradients into updates: one file each, and its name in the first line here."""

from metalora.train.optimizers import adamw
from metalora.train.optimizers.base import OPTIMIZERS, OptimizerMethod, restore

__all__ = ["OPTIMIZERS", "OptimizerMethod", "adamw", "restore"]
