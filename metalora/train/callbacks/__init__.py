"""Callbacks, which act around each step: one file each, and its name in the first line here."""

from metalora.train.callbacks import in_turn
from metalora.train.callbacks.base import CALLBACKS, Callback, Callbacks, Plan, Step

__all__ = ["CALLBACKS", "Callback", "Callbacks", "Plan", "Step", "in_turn"]
