"""The layers that can be adapted: their kinds and sizes, and the reasons why a layer cannot be adapted."""

import math

from torch import nn

from metalora.adapters.factors import ADAPTABLE, groups_of
from metalora.adapters.formats import Shape
from metalora.errors import UserError, given_as

# What an `AdaptedLayer` has of its own: it would hide what a layer keeps under the same name.
RESERVED = (
    *("base", "factors", "format", "rank", "shape", "alpha", "scale", "slot", "seed_slice", "channel_dim", "finishes"),
    *("merged", "merge", "unmerge", "mixing", "delta_weight", "adapter_parameters", "adapter_state"),
)


def shape_of(layer: nn.Module, rank: int) -> Shape:
    """Return the sizes of a layer that is adapted with a given rank."""
    assert isinstance(layer, ADAPTABLE)
    groups = groups_of(layer)
    return Shape(layer.weight.shape[0] // groups, math.prod(layer.weight.shape[1:]), groups, rank)


def largest_rank(layer: nn.Module) -> int:
    """Return the largest rank that an update of a layer can have: the smaller of its fan-in and its outputs."""
    shape = shape_of(layer, 1)
    return min(shape.fan, shape.out)


def refusal(layer: nn.Module) -> str | None:
    """Return the reason why a layer cannot be adapted, or None."""
    if not isinstance(layer, ADAPTABLE):
        return f"it is a {type(layer).__name__}; Linear, Conv1d, Conv2d and Conv3d can be adapted"
    if hasattr(layer, "parametrizations"):
        return "its weight is parametrized, so its update would be lost at the next step"
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other tensors, so an update of it would be lost"
    if isinstance(layer.weight, nn.parameter.UninitializedParameter):
        return "it has no size before its first forward"
    if not layer.weight.is_floating_point():
        return f"its weight is of type {layer.weight.dtype}, and an adapter of that type could not learn"
    if not _plain_forward(layer):
        return f"{type(layer).__name__} has a forward of its own, which an added update may not match"
    hidden = [name for name in RESERVED if hasattr(layer, name)]
    if hidden:
        return f"its attribute {hidden[0]!r} would be hidden by the adapter's own"
    return None


def check(layer: nn.Module, rank: int) -> None:
    """Check that a layer can be adapted with this rank.

    Raises:
        UserError: the layer cannot be adapted, or has no such rank; the message says why.
    """
    reason = refusal(layer)
    if reason:
        raise UserError(reason)
    largest = largest_rank(layer)
    if not 1 <= rank <= largest:
        raise UserError(f"rank {rank} does not fit: it takes ranks from 1 to {largest}{given_as('rank')}")


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
