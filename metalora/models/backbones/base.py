"""The backbone: a network without its classifier, with its inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from metalora.models.inputs import ImageInputs
from metalora.registry import Registry


class Backbone(nn.Module):
    """A network without its classifier.

    >>> import metalora
    >>> backbone = metalora.build_backbone("resnet20", "none")
    >>> backbone.input_size, backbone.num_features
    ((3, 28, 28), 64)

    Args:
        name: ``resnet20``, ``mixer_tiny``, ``torchvision/NAME`` or ``timm/NAME``.
        weights: The weights that were asked for: ``default``, a weights name, ``none`` or a path.
        net: The network; (B, 3, H, W) -> (B, num_features).
        num_features: Length of a feature vector.
        stem: Full dotted name (``net.conv1``) of the first convolution or linear layer, which is not to
            be adapted; None if there is none.
        inputs: The preprocessing that its weights expect.

    Attributes:
        input_size: (3, H, W) of the images that it takes.
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
        """Compute the pooled features, as a classifier would get them.

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
    """A network without its classifier, as a library builds it, and the facts that a `Backbone` needs.

    Attributes:
        net: The network.
        shapes: Shapes of the whole network's tensors by name, with those of the classifier.
        inputs: The preprocessing that its weights expect.
        stem: Name of its first layer; None: the first convolution or linear layer.
    """

    net: nn.Module
    shapes: Mapping[str, torch.Size]
    inputs: ImageInputs
    stem: str | None = None


@dataclass(frozen=True)
class Kept:
    """Where a library keeps weights that it has fetched.

    Attributes:
        path: The file or folder.
        root: The folder that copies to other machines may lie in, too.
        variable: Environment variable that names ``root``.
    """

    path: Path
    root: Path
    variable: str


class Library(Protocol):
    """A source of networks, in a file of its own. Its registered name is the part of a backbone's name before ``/``."""

    def names(self) -> Sequence[str]:
        """Return the names of its networks, without the library's name."""

    def build(self, model: str, weights: str, image_size: int | None, fetch: bool) -> Parts:
        """Build one of its networks.

        Args:
            model: Name of the network.
            weights: ``default``, ``none``, or a weights name.
            image_size: Side of the square input; None for the weights' own.
            fetch: Whether to fetch its weights; False if a file is loaded afterwards.

        Raises:
            UserError: the name is unknown, or the network has no such weights or size.
        """

    def kept(self, model: str, weights: str) -> Kept | None:
        """Return where the weights of a network are when they have been fetched; None if none are published.

        Args:
            model: Name of the network.
            weights: ``default``, or a weights name.

        Raises:
            UserError: as for `build`.
        """


LIBRARIES: Registry[Library] = Registry("library of backbones")


def shapes_of(net: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a network's tensors, by name."""
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


def kept_by_torch(url: str) -> Kept:
    """Return where torch keeps a file that it has downloaded."""
    hub = Path(torch.hub.get_dir())
    return Kept(hub / "checkpoints" / url.rpartition("/")[2], hub.parent, "TORCH_HOME")
