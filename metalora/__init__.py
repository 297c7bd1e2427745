"""MetaLoRA: one low-rank adapter for many visual domains, seeded by the image itself (arXiv 2504.00460).

model = metalora.adapt(backbone, format="tr", rank=4)
metalora.save(model, "adapter")
model = metalora.load(backbone, "adapter")
"""

from metalora.build import build_backbone
from metalora.errors import UserError
from metalora.models.assemble import MetaLoRAModel, adapt
from metalora.models.backbones import Backbone
from metalora.models.persist import load, save
from metalora.version import __version__

__all__ = ["Backbone", "MetaLoRAModel", "UserError", "__version__", "adapt", "build_backbone", "load", "save"]
