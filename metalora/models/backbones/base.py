"""A backbone: a network without its classifier, and what belongs to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from metalora.models.inputs import ImageInputs
from metalora.registry import Registry


class Backbone(nn.Module):
    """A network without its classifier.

    Args:
        name: ``resnet20``, ``mixer_tiny``, ``torchvision/NAME`` or ``timm/NAME``.
        weights: What was asked for: ``default``, a weights name, ``none`` or a path.
        net: The network; (B, 3, H, W) -> (B, num_features).
        num_features: Length of a feature vector.
        stem: Full dotted name (``net.conv1``) of the first convolution or linear layer, which is not to
            be adapted; None where there is none.
        inputs: What its weights expect of images.

    Attributes:
        input_size: (3, H, W) of what it takes.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        net: nn.Module,
        num_features: int,
        stem: str | None,
        inputs: ImageInputs,
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.net = net
        self.num_features = num_features
        self.input_size = inputs.size
        self.stem = stem
        self.exempt_modules = () if stem is None else (stem,)  # what ``target_modules = auto`` leaves alone
        self.inputs = inputs

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled features, as the classifier would see them.

        Args:
            x: Preprocessed images, (B, 3, H, W).

        Returns:
            Features, (B, num_features).
        """
        features: Tensor = self.net(x)
        return features

    forward = features


@dataclass(frozen=True)
class Parts:
    """A network without its classifier, as a library gives it, and what belongs to it.

    Attributes:
        net: The network.
        shapes: Shapes of the whole network's tensors, the classifier's included, by name.
        inputs: What its weights expect of images.
        stem: Name of its first layer; None: the first convolution or linear layer there is.
    """

    net: nn.Module
    shapes: Mapping[str, torch.Size]
    inputs: ImageInputs
    stem: str | None = None


class Library(Protocol):
    """A source of networks, in a file of its own; the name it is registered by stands before the slash of theirs."""

    def names(self) -> Sequence[str]:
        """Return the names of its networks, without the library's."""

    def build(self, model: str, weights: str, image_size: int | None, fetch: bool) -> Parts:
        """Build a network.

        Args:
            model: Its name.
            weights: ``default``, ``none``, or a name of weights.
            image_size: Side of the square input; None for the weights' own.
            fetch: Whether its tensors are wanted; else a file's are loaded afterwards.

        Raises:
            UserError: an unknown name, or weights or a size that the network does not have.
        """


LIBRARIES: Registry[Library] = Registry("library of backbones")


def shapes_of(net: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a network's tensors, by name."""
    return {name: tensor.shape for name, tensor in net.state_dict().items()}
