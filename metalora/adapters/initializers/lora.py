"""LoRA's first values (Hu et al., arXiv 2106.09685), those of every fresh adapter."""

import torch

from metalora.adapters.initializers.base import INITIALIZERS, Facts, Initializer
from metalora.adapters.layer import AdaptedLayer


@INITIALIZERS.register("lora")
class Lora(Initializer):
    """Down as torch begins such a layer (Kaiming uniform, a = sqrt 5), Up zero (arXiv 2106.09685): dW = 0.

    Every fresh layer has these values; other initializers change them."""

    def fill(self, layer: AdaptedLayer, facts: Facts, draw: torch.Generator) -> None:
        """Leave the fresh layer as it is. See `Initializer.fill`."""
