"""An adapted layer: a frozen Linear or ConvNd, and its low-rank update.

Shapes: B batch, G groups of a convolution, M the format's channels, I input and O output channels,
K... kernel, S the seed elements of the whole model.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.formats import Format
from metalora.adapters.seed_slot import SeedSlot
from metalora.adapters.support import ADAPTABLE, Dense, check
from metalora.errors import UserError

# An adapted layer shares these dictionaries with the layer that it replaces, whose hooks then see the whole output.
_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name and "state_dict" not in name)


class AdaptedLayer(nn.Module):
    """y = W x + b + (alpha / rank) * Up(modulate(Down(x), c)).

    ``Down`` is the layer's own kind of map (kernel, stride, padding and its mode, dilation, groups) into
    G M channels, ``Up`` a 1x1 map to O. A grouped convolution's groups each get an update of their own with
    the same seed, so dW has W's shape (O, I / G, K...). Up starts at zero: a fresh adapter changes nothing.
    No per-sample dW is materialised.

    To the network it is the layer that it replaces: an instance of the same class of torch's (Linear, ConvNd), with
    the same hooks and attributes.

    Args:
        base: The layer to adapt; frozen by the caller.
        format: The decomposition format.
        rank: R.
        alpha: Scale, divided by the rank.
        slot: Where this model's seeds are.
        seed_slice: This layer's part of ``slot``'s seeds.

    Raises:
        UserError: `refusal` names a reason, or the rank does not fit the layer.
    """

    def __new__(cls, base: nn.Module | None = None, *_: Any, **__: Any) -> "AdaptedLayer":
        """Make one of the class for ``base``; copies and pickles pass none, and name that class."""
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
        self.groups = 1 if isinstance(base, nn.Linear) else base.groups
        self.channel_dim = -1 if isinstance(base, nn.Linear) else 1
        channels = format.channels(rank)
        self.down = _down(base, self.groups * channels)
        self.up = _up(base, channels)
        like = base.weight
        gain = format.identity(rank).to(like.device, like.dtype) if format.seed == "learned" else None
        self.gain = nn.Parameter(gain) if gain is not None else None
        self._unmerged: tuple[Tensor] | None = None  # in a tuple, so as not to be registered
        for name in _HOOKS:
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
                "stays under no_grad belongs into exclude_modules"
            )
        h = self.down(input)
        if self.format.seed != "none":
            h = self._modulate(h, self._seed())
        return torch.add(y, self.up(h), alpha=self.scale)

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
            if name in self.down.__dict__:
                setattr(self.down, name, value)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def merged(self) -> bool:
        """Whether the update is part of the base weight at present."""
        return self._unmerged is not None

    def adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters this layer adds, by name: what is trained, counted and saved."""
        for part in ("down", "up"):
            for name, parameter in self.get_submodule(part).named_parameters():
                yield f"{part}.{name}", parameter
        if self.gain is not None:
            yield "gain", self.gain

    def mixing(self, rows: int) -> Tensor | None:
        """Return `Format.mixing` of this layer's seeds; None for a format without.

        Args:
            rows: The batch that this layer sees.
        """
        if self.format.seed == "none":
            return None
        seed = self._seed()
        times = 1 if self.gain is not None else _times(seed, rows)
        return self.format.mixing(seed if times == 1 else seed.repeat_interleave(times, dim=0))

    def delta_weight(self, seed: Tensor | None = None) -> Tensor:
        """Materialise the update through TensorLy, in W's shape (O, I / G, K...), scaled.

        Args:
            seed: All layers' seeds (S,), for a format with generated seeds.

        Raises:
            UserError: a generated format without a seed.
        """
        c = self._fixed_seed(seed)
        channels = self.format.channels(self.rank)
        down = self.down.weight.reshape(self.groups, channels, -1)
        up = self.up.weight.reshape(self.groups, -1, channels)
        blocks = [self.format.contract(down[g], up[g], c) for g in range(self.groups)]
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
        return self.slot.part(self.seed_slice) if self.gain is None else self.gain.unsqueeze(0)

    def _modulate(self, h: Tensor, c: Tensor) -> Tensor:
        # Groups, and the windows of a windowed transformer, make several rows of one sample, side by side.
        if self.groups > 1:
            h = h.unflatten(1, (self.groups, -1)).flatten(0, 1)
        c = c.to(h.dtype)  # the mapping net stays in float32 whatever the backbone's type
        times = _times(c, h.shape[0])
        if self.channel_dim == 1 and c.shape[0] != 1 and times != 1:
            c = c.repeat_interleave(times, dim=0)
        h = self.format.modulate(h, c, self.channel_dim)
        return h.unflatten(0, (-1, self.groups)).flatten(1, 2) if self.groups > 1 else h

    def _fixed_seed(self, seed: Tensor | None) -> Tensor:
        weight = self.up.weight
        if self.gain is not None:
            return self.gain
        if self.format.seed == "none":
            return self.format.identity(self.rank).to(weight.device, weight.dtype)
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


def _down(base: Dense, channels: int) -> Dense:
    """Copy the layer with ``channels`` outputs, no bias, and LoRA's initial values."""
    weight = torch.empty(channels, *base.weight.shape[1:], device=base.weight.device, dtype=base.weight.dtype)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    down = copy.deepcopy(base, memo={id(base.weight): nn.Parameter(weight), id(base.bias): None})
    vars(down).update({name: hooks for name, hooks in vars(nn.Module()).items() if name in _HOOKS})
    setattr(down, "out_features" if isinstance(base, nn.Linear) else "out_channels", channels)
    return down


def _up(base: Dense, channels: int) -> Dense:
    like: Any = {"device": base.weight.device, "dtype": base.weight.dtype}
    if isinstance(base, nn.Linear):
        up: Dense = nn.Linear(channels, base.out_features, bias=False, **like)
    else:
        kind = next(k for k in ADAPTABLE[1:] if isinstance(base, k))
        up = kind(base.groups * channels, base.out_channels, 1, groups=base.groups, bias=False, **like)
    nn.init.zeros_(up.weight)
    return up


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
