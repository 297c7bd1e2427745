"""What a decomposition format is: channels, seed, modulation, and its dense update.

Shapes: B batch, R rank, M channels between the factors, I fan-in of a layer (input channels of a group x
kernel positions), O output channels of a group.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from metalora.registry import Registry

SeedKind = Literal["none", "learned", "generated"]


class Format(ABC):
    """How the seed c joins the static factors: y = W x + s * Up(modulate(Down(x), c)).

    A format holds no tensors: the layer owns its factors, and passes them in.

    Attributes:
        seed: ``none``; ``learned``: c is a parameter of the layer; ``generated``: c comes from the mapping net.
    """

    seed: SeedKind

    @abstractmethod
    def channels(self, rank: int) -> int:
        """Return M, the channels between Down and Up."""

    @abstractmethod
    def identity(self, rank: int) -> Tensor:
        """Return the seed, flat, with which `modulate` changes nothing: that of a fresh adapter."""

    @abstractmethod
    def modulate(self, h: Tensor, c: Tensor, channel_dim: int) -> Tensor:
        """Apply each sample's seed to its channels.

        Args:
            h: Down's output, (B, M, ...) if ``channel_dim`` is 1, (B, ..., M) if it is -1.
            c: Seeds, (B, seed size), or (1, seed size) for one seed for all; if ``channel_dim`` is -1, (N, seed size)
                for any N that divides B: each for B / N samples that lie side by side.
            channel_dim: 1 or -1.

        Returns:
            A tensor of h's shape.
        """

    @abstractmethod
    def mixing(self, c: Tensor) -> Tensor:
        """Return what `modulate` does with seeds, (B, seed size), to h, (B, ..., M), as a plain product.

        Returns:
            Scales, (B, M): h * scales; or matrices, (B, M, M): h @ matrices.
        """

    @abstractmethod
    def contract(self, down: Tensor, up: Tensor, c: Tensor) -> Tensor:
        """Materialise the update of one seed through TensorLy.

        Args:
            down: (M, I).
            up: (O, M).
            c: (seed size,).

        Returns:
            The update, unscaled, (O, I).
        """

    def seed_size(self, rank: int) -> int:
        """Return the number of elements of a layer's seed."""
        return self.identity(rank).numel()


class Diagonal(Format):
    """Formats whose seed scales channels: modulate(h, c) = c * h, dW = sum_m up[:, m] c_m down[m]."""

    def channels(self, rank: int) -> int:
        """Return M = R."""
        return rank

    def identity(self, rank: int) -> Tensor:
        """Return ones, (M,)."""
        return torch.ones(self.channels(rank))

    def modulate(self, h: Tensor, c: Tensor, channel_dim: int) -> Tensor:
        """Scale each channel. See `Format.modulate`."""
        if channel_dim == 1:
            return h * c.view(*c.shape, *(1,) * (h.dim() - 2))
        return (h.reshape(c.shape[0], -1, c.shape[1]) * c[:, None]).view(h.shape)

    def mixing(self, c: Tensor) -> Tensor:
        """Return the seeds: they are scales. See `Format.mixing`."""
        return c

    def contract(self, down: Tensor, up: Tensor, c: Tensor) -> Tensor:
        """Sum the weighted outer products. See `Format.contract`."""
        import tensorly

        with tensorly.backend_context("pytorch", local_threadsafe=True):
            dense: Tensor = tensorly.cp_to_tensor((c, [up, down.T]))
        return dense


FORMATS: Registry[type[Format]] = Registry("adapter format")


def build_format(name: str, branches: int = 4) -> Format:
    """Make a format by name.

    Args:
        name: A name in `FORMATS`.
        branches: Parallel branches, for the format that has them.

    Raises:
        UserError: unknown name.
    """
    made = FORMATS.get(name)
    return made(branches) if name == "multi_lora" else made()  # type: ignore[call-arg]
