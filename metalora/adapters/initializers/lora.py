"""LoRA's start (Hu et al., arXiv 2106.09685), that of every fresh adapter."""

import torch

from metalora.adapters.initializers.base import INITIALIZERS, Facts, Initializer
from metalora.adapters.layer import AdaptedLayer


@INITIALIZERS.register("lora")
class Lora(Initializer):
    """Down as torch begins such a layer (Kaiming uniform, a = sqrt 5), Up zero (arXiv 2106.09685): dW = 0.

    Every fresh layer begins so; the others change it."""

    def fill(self, layer: AdaptedLayer, facts: Facts, draw: torch.Generator) -> None:
        """Leave the layer as it was made. See `Initializer.fill`."""
