"""The base class of initializers: the first values of a layer's factors, from nothing, the weights or gradients."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from metalora.registry import Registry

if TYPE_CHECKING:
    from metalora.adapters.layer import AdaptedLayer


@dataclass(frozen=True)
class Facts:
    """The measurements of one layer before the first step.

    Attributes:
        gradient: Gradient of the mean loss with respect to the frozen weight, in its shape; None if not asked for.
    """

    gradient: Tensor | None = None


class Initializer(ABC):
    """The rule for the first values of a layer's factors; a frozen dataclass of its options.

    >>> from metalora.adapters.initializers import INITIALIZERS
    >>> INITIALIZERS.make("lora").needs
    'nothing'

    Attributes:
        name: The name that the initializer is registered by.
        needs: ``nothing`` (only the layer, whose weight it may read), or ``gradients`` of the frozen weights. These
            are measured before the first step, on the first `batches` batches.
    """

    name: str
    needs: ClassVar[Literal["nothing", "gradients"]] = "nothing"
    batches: int = 1

    @abstractmethod
    def fill(self, layer: "AdaptedLayer", facts: Facts, draw: torch.Generator) -> None:
        """Set the values of a layer's factors, in place and without gradients.

        Args:
            layer: The layer; its factors have the values of `lora`. Their weights: ``down, up = layer.factors.pair()``;
                set them by ``down.copy_(...)``.
            facts: The measurements of this layer.
            draw: The generator of random numbers, on the CPU; equal on all ranks, and this layer's own.
        """


INITIALIZERS: Registry[Initializer] = Registry("initializer", "initializer")


@torch.no_grad()
def fill_layers(
    layers: Mapping[str, "AdaptedLayer"], initializer: Initializer, facts: Mapping[str, Facts], random_seed: int
) -> None:
    """Set the factors of all layers by an initializer.

    Args:
        layers: The adapted layers, by name.
        initializer: The initializer.
        facts: The measurements by layer; may be empty for an initializer that needs nothing.
        random_seed: Random numbers depend on this and on the layer's name.
    """
    for name, layer in layers.items():
        key = int.from_bytes(hashlib.blake2b(f"{random_seed} {name}".encode(), digest_size=7).digest())
        initializer.fill(layer, facts.get(name, Facts()), torch.Generator().manual_seed(key))
