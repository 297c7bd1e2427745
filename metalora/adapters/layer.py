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
from metalora.errors import UserError

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Dense = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class AdaptedLayer(nn.Module):
    """y = W x + b + (alpha / rank) * Up(modulate(Down(x), c)).

    ``Down`` is the layer's own kind of map (kernel, stride, padding and its mode, dilation, groups) into
    G M channels, ``Up`` a 1x1 map to O. A grouped convolution's groups each get an update of their own with
    the same seed, so dW has W's shape (O, I / G, K...). Up starts at zero: a fresh adapter changes nothing.
    No per-sample dW is materialised.

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

    def __init__(
        self, base: nn.Module, format: Format, rank: int, alpha: float, slot: SeedSlot, seed_slice: slice
    ) -> None:
        super().__init__()
        check(base, rank)
        assert isinstance(base, ADAPTABLE)
        self.base: Dense = base
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

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, ...) to (B, O, ...) as the base layer does, with the update added."""
        y = self.base(x)
        call = self.slot.call
        if self.merged or not call.enabled:
            return y  # type: ignore[no-any-return]
        if call.learns and not torch.is_grad_enabled():
            raise UserError(
                f"the network runs an adapted {self.base} without gradients, so its adapter cannot learn: activation "
                "checkpointing needs use_reentrant=False, and what stays under no_grad belongs into exclude_modules"
            )
        h = self.down(x)
        if self.format.seed != "none":
            h = self._modulate(h, self._seed())
        return torch.add(y, self.up(h), alpha=self.scale)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def merged(self) -> bool:
        """Whether the update is part of the base weight at present."""
        return self._unmerged is not None

    @property
    def weight(self) -> Tensor:
        """The base layer's weight: some networks read its dtype or device."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias

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


def _times(c: Tensor, rows: int) -> int:
    """Return how many rows are one sample's, which lie side by side."""
    if rows % c.shape[0]:
        raise RuntimeError(f"{c.shape[0]} seeds for {rows} rows: the batches do not fit")
    return rows // c.shape[0]


def fan(layer: nn.Module) -> tuple[int, int]:
    """Return (input channels of a group x kernel positions, output channels of a group)."""
    assert isinstance(layer, ADAPTABLE)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return math.prod(layer.weight.shape[1:]), layer.weight.shape[0] // groups


def adapter_size(layer: nn.Module, format: Format, rank: int) -> int:
    """Return how many parameters an `AdaptedLayer` would add to ``layer``."""
    assert isinstance(layer, ADAPTABLE)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    fan_in, fan_out = fan(layer)
    learned = format.seed_size(rank) if format.seed == "learned" else 0
    return format.channels(rank) * groups * (fan_in + fan_out) + learned


def refusal(layer: nn.Module) -> str | None:
    """Return why a layer cannot be adapted, or None."""
    if not isinstance(layer, ADAPTABLE):
        return f"it is a {type(layer).__name__}; Linear, Conv1d, Conv2d and Conv3d can be adapted"
    if hasattr(layer, "parametrizations"):
        return "its weight is parametrized, so its update would be lost at the next step"
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other tensors, so an update of it would be lost"
    if isinstance(layer.weight, nn.parameter.UninitializedParameter):
        return "it has no size before its first forward"
    if not _plain_forward(layer):
        return f"{type(layer).__name__} has a forward of its own, which an added update may not match"
    return None


def check(layer: nn.Module, rank: int) -> None:
    """Refuse what cannot be adapted at this rank.

    Raises:
        UserError: the reason.
    """
    reason = refusal(layer)
    if reason:
        raise UserError(reason)
    largest = min(fan(layer))
    if not 1 <= rank <= largest:
        raise UserError(f"rank {rank} does not fit: it takes ranks from 1 to {largest}")


def _plain_forward(layer: nn.Module) -> bool:
    kind = type(layer)
    if "forward" in vars(layer):
        return False
    if (kind.__module__, kind.__name__) in {
        # These pad or cast before the plain map, so a copy of them is still "the layer's own kind of map".
        ("timm.layers.conv2d_same", "Conv2dSame"),
        ("timm.layers.linear", "Linear"),
    }:
        return True
    plain = next(base for base in ADAPTABLE if isinstance(layer, base))
    return kind.forward is plain.forward and getattr(kind, "_conv_forward", None) is getattr(
        plain, "_conv_forward", None
    )


def _down(base: Dense, channels: int) -> Dense:
    """Copy the layer with ``channels`` outputs, no bias, and LoRA's initial values."""
    weight = torch.empty(channels, *base.weight.shape[1:], device=base.weight.device, dtype=base.weight.dtype)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    down = copy.deepcopy(base, memo={id(base.weight): nn.Parameter(weight), id(base.bias): None})
    for hooks in (down._forward_hooks, down._backward_hooks, down._backward_pre_hooks):
        hooks.clear()  # they look at the layer's output, which this is not
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
