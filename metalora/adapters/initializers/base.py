"""What an initializer is: the first values of a layer's factors, from nothing, the weights or gradients."""

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
    """What was measured at one layer before the first step.

    Attributes:
        gradient: Gradient of the mean loss with respect to the frozen weight, in its shape; None if nobody asked.
    """

    gradient: Tensor | None = None


class Initializer(ABC):
    """How a layer's factors begin; a frozen dataclass of its options.

    >>> from metalora.adapters.initializers import INITIALIZERS
    >>> INITIALIZERS.make("lora").needs
    'nothing'

    Attributes:
        name: The name that it is registered by.
        needs: ``nothing`` (beside the layer, whose weight it may look at), or ``gradients`` of the frozen weights: then
            a training measures them on its first `batches` batches, before the first step.
    """

    name: str
    needs: ClassVar[Literal["nothing", "gradients"]] = "nothing"
    batches: int = 1

    @abstractmethod
    def fill(self, layer: "AdaptedLayer", facts: Facts, draw: torch.Generator) -> None:
        """Set the values of a layer's factors, in place; without gradients.

        Args:
            layer: The layer; its factors begin as `lora` has it.
            facts: What was measured there.
            draw: Where random numbers come from, on the CPU: equal on all ranks, and of this layer alone.
        """


INITIALIZERS: Registry[Initializer] = Registry("initializer", "initializer")


@torch.no_grad()
def fill_layers(
    layers: Mapping[str, "AdaptedLayer"], initializer: Initializer, facts: Mapping[str, Facts], random_seed: int
) -> None:
    """Let an initializer set the values of all layers.

    Args:
        layers: The adapted layers, by name.
        initializer: The initializer.
        facts: What was measured, by layer; may be empty for an initializer that needs nothing.
        random_seed: What random numbers depend on, beside the layer's name.
    """
    for name, layer in layers.items():
        key = int.from_bytes(hashlib.blake2b(f"{random_seed} {name}".encode(), digest_size=7).digest())
        initializer.fill(layer, facts.get(name, Facts()), torch.Generator().manual_seed(key))
