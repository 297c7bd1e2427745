"""MetaLoRA: one low-rank adapter for many visual domains, seeded by the image itself (arXiv 2504.00460).

model = metalora.adapt(backbone, format="tr", rank=4)
metalora.save(model, "adapter")
model = metalora.load(backbone, "adapter")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metalora.errors import UserError
from metalora.version import __version__

if TYPE_CHECKING:
    from metalora.build import build_backbone
    from metalora.models.adapt import adapt
    from metalora.models.backbones.base import Backbone
    from metalora.models.model import MetaLoRAModel
    from metalora.models.persist import load, save

__all__ = ["Backbone", "MetaLoRAModel", "UserError", "__version__", "adapt", "build_backbone", "load", "save"]

_HOMES = {
    "build_backbone": "metalora.build",
    "MetaLoRAModel": "metalora.models.model",
    "adapt": "metalora.models.adapt",
    "Backbone": "metalora.models.backbones.base",
    "load": "metalora.models.persist",
    "save": "metalora.models.persist",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that a process that needs no torch starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
