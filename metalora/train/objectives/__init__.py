"""Objectives, the losses that a training minimizes: one file each, and its name in the first line here."""

from metalora.train.objectives import classification, episodic
from metalora.train.objectives.base import OBJECTIVES, Draw, Objective

__all__ = ["OBJECTIVES", "Draw", "Objective", "classification", "episodic"]
