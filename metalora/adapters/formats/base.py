"""The base class of formats: channels, seed, modulation, and the dense update.

Shapes: B batch, R rank, M channels between the factors, I fan-in of a layer (input channels of a group x
kernel positions), O output channels of a group.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metalora.adapters.factors import Dense, Factors
from metalora.registry import Registry

SeedSource = Literal["none", "learned", "generated"]


@dataclass(frozen=True)
class Shape:
    """The sizes of one adapted layer. Each group of a convolution has an update of its own.

    Attributes:
        out: O, output channels of a group.
        fan: I, input channels of a group x kernel positions.
        groups: G, groups of a convolution; else 1.
        rank: R.
    """

    out: int
    fan: int
    groups: int
    rank: int


class Format(ABC):
    """How the seed c joins the factors: y = W x + s * finish(Up(modulate(Down(x), c)), c), s = alpha / R.

    A format is a frozen dataclass of its options. It holds no tensors: `factors` makes those, once for each layer.

    >>> from metalora.adapters.formats import FORMATS
    >>> FORMATS.make({"name": "multi_lora", "branches": 2}).channels(Shape(out=8, fan=8, groups=1, rank=4))
    8

    Attributes:
        name: The name that the format is registered by.
        seed: Where c comes from. ``none``: there is none; ``learned``: it is a parameter of the layer; ``generated``:
            it comes from the mapping net. A format that offers a choice declares ``seed`` as one of its options.
    """

    name: str
    seed: SeedSource

    @abstractmethod
    def channels(self, shape: Shape) -> int:
        """Return M, the number of channels between Down and Up."""

    @abstractmethod
    def identity(self, shape: Shape) -> Tensor:
        """Return the identity seed of a fresh adapter, flat: with it `modulate` and `finish` change nothing."""

    @abstractmethod
    def modulate(self, h: Tensor, c: Tensor, channel_dim: int) -> Tensor:
        """Apply each sample's seed to its channels.

        Args:
            h: Down's output, (B, M, ...) if ``channel_dim`` is 1, (B, ..., M) if it is -1.
            c: Seeds, (B, seed size), or (1, seed size) for one seed for all. If ``channel_dim`` is -1, also (N, seed
                size) for any N that divides B: each seed is for B / N samples side by side.
            channel_dim: 1 or -1.

        Returns:
            A tensor of h's shape.
        """

    @abstractmethod
    def mixing(self, c: Tensor) -> Tensor:
        """Return the scales or matrices by which `modulate` multiplies h, (B, ..., M), one for each sample.

        Args:
            c: Seeds, (B, seed size).

        Returns:
            Scales, (B, M): h * scales; or matrices, (B, M, M): h @ matrices.
        """

    @abstractmethod
    def contract(self, down: Tensor, up: Tensor, c: Tensor) -> Tensor:
        """Compute the dense update of one seed through TensorLy, without `finish`.

        Args:
            down: (M, I).
            up: (O, M).
            c: (seed size,).

        Returns:
            The unscaled update, (O, I).
        """

    def factors(self, base: Dense, shape: Shape) -> Factors:
        """Make the factors of a layer, with default values; an initializer may set others."""
        learned = self.identity(shape) if self.seed == "learned" else None
        return Factors(base, self.channels(shape), learned)

    def size(self, shape: Shape) -> int:
        """Return the number of trained elements in the result of `factors`."""
        learned = self.seed_size(shape) if self.seed == "learned" else 0
        return self.channels(shape) * shape.groups * (shape.fan + shape.out) + learned

    def finish(self, update: Tensor, c: Tensor | None, channel_dim: int, factors: Factors) -> Tensor:
        """Change the update after Up, linearly and each sample by itself. Default: return it as it is.

        Args:
            update: Up's output, (B, O, ...) if ``channel_dim`` is 1, (B, ..., O) if it is -1.
            c: Seeds, as for `modulate`; None for a format without seeds.
            channel_dim: 1 or -1.
            factors: The layer's factors.

        Returns:
            A tensor of the update's shape.
        """
        return update

    def seed_size(self, shape: Shape) -> int:
        """Return the number of elements of a layer's seed."""
        return self.identity(shape).numel()


class Diagonal(Format):
    """Formats whose seed scales channels: modulate(h, c) = c * h, dW = sum_m up[:, m] c_m down[m]."""

    def channels(self, shape: Shape) -> int:
        """Return M = R."""
        return shape.rank

    def identity(self, shape: Shape) -> Tensor:
        """Return ones, (M,)."""
        return torch.ones(self.channels(shape))

    def modulate(self, h: Tensor, c: Tensor, channel_dim: int) -> Tensor:
        """Scale each channel. See `Format.modulate`."""
        if channel_dim == 1:
            return h * c.view(*c.shape, *(1,) * (h.dim() - 2))
        return (h.reshape(c.shape[0], -1, c.shape[1]) * c[:, None]).view(h.shape)

    def mixing(self, c: Tensor) -> Tensor:
        """Return the seeds: they are scales. See `Format.mixing`."""
        return c

    def contract(self, down: Tensor, up: Tensor, c: Tensor) -> Tensor:
        """Sum the outer products, weighted by the seed. See `Format.contract`."""
        import tensorly

        with tensorly.backend_context("pytorch", local_threadsafe=True):
            dense: Tensor = tensorly.cp_to_tensor((c, [up, down.T]))
        return dense


FORMATS: Registry[Format] = Registry("adapter format", "format")
