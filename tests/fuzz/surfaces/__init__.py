"""The surfaces, by name. A new one is a module here with a `Surface` called ``surface``, and a line below."""

from tests.fuzz.surface import Surface
from tests.fuzz.surfaces import (
    adapter,
    cache,
    checkpoint,
    config,
    folders,
    images,
    listings,
    parquet,
    requests,
    results,
    runs,
    weights,
)

_MODULES = (adapter, weights, checkpoint, cache, images, parquet, listings, folders, config, runs, results, requests)

SURFACES: dict[str, Surface] = {module.surface.name: module.surface for module in _MODULES}


def place(name: str) -> str:
    """Return where a child process finds a surface."""
    return next(f"{module.__name__}:surface" for module in _MODULES if module.surface.name == name)
