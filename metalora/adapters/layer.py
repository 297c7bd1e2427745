"""An adapted layer: a frozen Linear or ConvNd, and its low-rank update.

Shapes: B batch, G groups of a convolution, I and O input and output channels, K... kernel, S the seed elements of the
whole model.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.factors import ADAPTABLE, HOOKS, Dense
from metalora.adapters.formats import Format
from metalora.adapters.seed_slot import SeedSlot
from metalora.adapters.support import check, shape_of
from metalora.errors import UserError, given_as


class AdaptedLayer(nn.Module):
    """y = W x + b + (alpha / rank) * finish(Up(modulate(Down(x), c)), c).

    ``Down`` and ``Up`` come from the layer's `Factors`. A grouped convolution's groups each get an update of their own
    with the same seed, so dW has W's shape (O, I / G, K...). No per-sample dW is materialised.

    To the network it looks like the layer that it replaces: an instance of the same torch class (Linear, ConvNd),
    with the same hooks and attributes.

    Args:
        base: The layer to adapt; frozen by the caller.
        format: The decomposition format.
        rank: R.
        alpha: The update is scaled by alpha / rank.
        slot: The slot that holds this model's seeds.
        seed_slice: This layer's part of ``slot``'s seeds.

    Raises:
        UserError: the layer cannot be adapted (see `refusal`), or the rank does not fit it.
    """

    def __new__(cls, base: nn.Module | None = None, *_: Any, **__: Any) -> "AdaptedLayer":
        """Make an instance of the class for ``base``; copies and pickles pass no ``base``, and name the class."""
        return super().__new__(next((own for kind, own in _CLASSES.items() if isinstance(base, kind)), cls))

    def __init__(
        self, base: nn.Module, format: Format, rank: int, alpha: float, slot: SeedSlot, seed_slice: slice
    ) -> None:
        nn.Module.__init__(self)  # not that of the layer which it looks like
        check(base, rank)
        assert isinstance(base, ADAPTABLE)
        self.format = format
        self.rank = rank
        self.alpha = alpha
        self.slot = slot
        self.seed_slice = seed_slice
        self.shape = shape_of(base, rank)
        self.channel_dim = -1 if isinstance(base, nn.Linear) else 1
        self.factors = format.factors(base, self.shape)
        nn.init.zeros_(self.factors.up.weight)  # a fresh adapter changes nothing
        self.finishes = type(format).finish is not Format.finish
        self._unmerged: tuple[Tensor] | None = None  # in a tuple, so as not to be registered
        for name in HOOKS:
            object.__setattr__(self, name, getattr(base, name))
        self.base: Dense = base  # last: from now on, attributes that it has are set there

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, I, ...) to (B, O, ...) as the base layer does, with the update added."""
        y = self.base.forward(input)  # without its hooks, which are this layer's
        call = self.slot.call
        if self.merged or not call.enabled:
            return y
        if call.learns and not torch.is_grad_enabled():
            raise UserError(
                f"the network runs an adapted {type(self.base).__name__}({self.base.extra_repr()}) without gradients, "
                "so its adapter cannot learn: activation checkpointing needs use_reentrant=False, and a layer that "
                f"stays under no_grad must be listed in exclude_modules{given_as('exclude_modules')}"
            )
        down, up = self.factors.maps()
        h = down(input)
        c = None if self.format.seed == "none" else self._seed()
        if c is not None:
            h = self._modulate(h, c)
        update = up(h)
        if self.finishes:
            update = self._finish(update, c)
        return torch.add(y, update, alpha=self.scale)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":  # not there yet, in a copy that is being made
                raise
            return getattr(self.base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        base = self.__dict__.get("_modules", {}).get("base")
        if base is None or name in self.__dict__ or name in self._modules or not _has(base, name):
            super().__setattr__(name, value)
        else:  # the stride, say, which is Down's, too
            setattr(base, name, value)
            if name in self.factors.down.__dict__:
                setattr(self.factors.down, name, value)

    @property
    def scale(self) -> float:
        """The scale of the update, alpha / rank."""
        return self.alpha / self.rank

    @property
    def merged(self) -> bool:
        """Whether the update is part of the base weight now."""
        return self._unmerged is not None

    def adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that this layer adds, by name; they are trained and counted."""
        yield from self.factors.trained()

    def adapter_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that this layer adds to an adapter file, by name."""
        yield from ((name, p.detach()) for name, p in self.adapter_parameters())
        kept = self.factors.state_dict().keys()
        yield from ((name, buffer) for name, buffer in self.factors.named_buffers() if name in kept)

    def mixing(self, rows: int) -> Tensor | None:
        """Return `Format.mixing` of this layer's seeds; None for a format without seeds.

        Args:
            rows: Size of the batch that this layer sees.
        """
        if self.format.seed == "none":
            return None
        seed = self._seed()
        times = _times(seed, rows) if self.format.seed == "generated" else 1
        return self.format.mixing(seed if times == 1 else seed.repeat_interleave(times, dim=0))

    def delta_weight(self, seed: Tensor | None = None) -> Tensor:
        """Compute the scaled dense update through TensorLy, in W's shape (O, I / G, K...).

        Args:
            seed: All layers' seeds (S,), for a format with generated seeds.

        Raises:
            UserError: the format has generated seeds, and ``seed`` is None.
        """
        c = self._fixed_seed(seed)
        channels, groups = self.format.channels(self.shape), self.shape.groups
        down, up = self.factors.pair()
        down, up = down.reshape(groups, channels, -1), up.reshape(groups, -1, channels)
        blocks = [self.format.contract(down[g], up[g], c) for g in range(groups)]
        if self.finishes:  # it is linear, so it acts on each column of the update as on an image
            seed = None if self.format.seed == "none" else c.unsqueeze(0)
            blocks = [self.format.finish(block.T, seed, -1, self.factors).T for block in blocks]
        return self.scale * torch.cat(blocks).reshape(self.base.weight.shape)

    def merge(self, seed: Tensor | None = None) -> None:
        """Add the update to the base weight; `unmerge` gives the same weight back, bit for bit.

        The merged weight is a new tensor: the extractor may share the old one.

        Args:
            seed: As for `delta_weight`.
        """
        if self.merged:
            raise UserError("the adapter is merged already: unmerge it first")
        weight = self.base.weight
        with torch.no_grad():
            merged = (weight + self.delta_weight(seed)).to(weight.dtype)
        self._unmerged = (weight,)
        self.base.weight = nn.Parameter(merged, requires_grad=False)

    def unmerge(self) -> None:
        """Put the frozen weight back."""
        if self._unmerged is None:
            raise UserError("the adapter is not merged")
        (weight,) = self._unmerged
        weight.data = weight.data.to(self.base.weight.device, self.base.weight.dtype)
        self.base.weight = weight
        self._unmerged = None

    def _seed(self) -> Tensor:
        gain = self.factors.gain
        return self.slot.part(self.seed_slice) if gain is None else gain.unsqueeze(0)

    def _modulate(self, h: Tensor, c: Tensor) -> Tensor:
        h, c = self._by_group(h), self._for_rows(c, h)
        return self._whole(self.format.modulate(h, c, self.channel_dim))

    def _finish(self, update: Tensor, c: Tensor | None) -> Tensor:
        update, c = self._by_group(update), None if c is None else self._for_rows(c, update)
        return self._whole(self.format.finish(update, c, self.channel_dim, self.factors))

    # Groups, and the windows of a windowed transformer, make several rows of one sample, side by side.

    def _by_group(self, h: Tensor) -> Tensor:
        return h.unflatten(1, (self.shape.groups, -1)).flatten(0, 1) if self.shape.groups > 1 else h

    def _whole(self, h: Tensor) -> Tensor:
        groups = self.shape.groups
        return h.unflatten(0, (-1, groups)).flatten(1, 2) if groups > 1 else h

    def _for_rows(self, c: Tensor, whole: Tensor) -> Tensor:
        """Return seeds for the rows that `_by_group` makes of a tensor."""
        c = c.to(whole.dtype)  # the mapping net stays in float32 whatever the backbone's type
        times = _times(c, whole.shape[0] * self.shape.groups)
        if self.channel_dim == 1 and c.shape[0] != 1 and times != 1:
            c = c.repeat_interleave(times, dim=0)
        return c

    def _fixed_seed(self, seed: Tensor | None) -> Tensor:
        weight = self.base.weight
        if self.factors.gain is not None:
            return self.factors.gain
        if self.format.seed == "none":
            return self.format.identity(self.shape).to(weight.device, weight.dtype)
        if seed is None:
            raise UserError("this format's update depends on a seed: pass one, e.g. model.seed(images).mean(0)")
        return seed.reshape(-1)[self.seed_slice].to(weight.device, weight.dtype)


def _has(layer: nn.Module, name: str) -> bool:
    return name in layer.__dict__ or name in layer._parameters


def _times(c: Tensor, rows: int) -> int:
    """Return how many rows are one sample's, which lie side by side."""
    if rows % c.shape[0]:
        raise RuntimeError(f"{c.shape[0]} seeds for {rows} rows: the batches do not fit")
    return rows // c.shape[0]


class AdaptedLinear(AdaptedLayer, nn.Linear):
    """An adapted Linear."""


class AdaptedConv1d(AdaptedLayer, nn.Conv1d):
    """An adapted Conv1d."""


class AdaptedConv2d(AdaptedLayer, nn.Conv2d):
    """An adapted Conv2d."""


class AdaptedConv3d(AdaptedLayer, nn.Conv3d):
    """An adapted Conv3d."""


_CLASSES: dict[type[nn.Module], type[AdaptedLayer]] = {
    nn.Linear: AdaptedLinear,
    nn.Conv1d: AdaptedConv1d,
    nn.Conv2d: AdaptedConv2d,
    nn.Conv3d: AdaptedConv3d,
}
