"""``metalora bench``: see `pipelines.bench`."""

from pipelines.bench import main

__all__ = ["main"]
