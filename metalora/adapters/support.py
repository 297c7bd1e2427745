"""What can be adapted: kinds of layer, their sizes, and the reasons against a layer."""

import math

from torch import nn

from metalora.adapters.formats import Format
from metalora.errors import UserError

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Dense = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

# What an `AdaptedLayer` has of its own: it would hide what a layer keeps under the same name.
RESERVED = (
    *("base", "down", "up", "gain", "format", "rank", "alpha", "scale", "slot", "seed_slice", "channel_dim"),
    *("merged", "merge", "unmerge", "mixing", "delta_weight", "adapter_parameters"),
)


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
    if not layer.weight.is_floating_point():
        return f"its weight is of type {layer.weight.dtype}, and an adapter of that type could not learn"
    if not _plain_forward(layer):
        return f"{type(layer).__name__} has a forward of its own, which an added update may not match"
    hidden = [name for name in RESERVED if hasattr(layer, name)]
    if hidden:
        return f"its attribute {hidden[0]!r} would be hidden by the adapter's own"
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
