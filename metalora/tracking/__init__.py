"""Tracking of runs by MLflow, or not at all."""
