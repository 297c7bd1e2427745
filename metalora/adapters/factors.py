"""The factors of a layer: the values that it trains and stores, and how they make Down and Up.

Shapes: G groups of a convolution, M channels of an update, I and O input and output channels, K... kernel.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Dense = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

# What a layer's hooks are called: an adapted layer shares them with the layer that it replaces, Down has none.
HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name and "state_dict" not in name)

Map = Callable[[Tensor], Tensor]


class Factors(nn.Module):
    """Two plain matrices, Down and Up, and the learned seed if the format has one.

    Down is a map of the layer's own kind (kernel, stride, padding and its mode, dilation, groups) to G M channels. Up
    is a 1x1 map to O channels. Both start as torch starts such layers; an `Initializer` may set other values.

    Parameters that require a gradient are trained, counted and saved; persistent buffers are saved. A subclass may add
    parameters and buffers, and may compute Down and Up by overriding `pair` and `maps`.

    >>> factors = Factors(nn.Linear(8, 6), channels=2)
    >>> [tuple(weight.shape) for weight in factors.pair()]
    [(2, 8), (6, 2)]

    Args:
        base: The layer to adapt.
        channels: M.
        gain: The learned seed's first value, (seed size,); None for a format without a learned seed.
    """

    def __init__(self, base: Dense, channels: int, gain: Tensor | None = None) -> None:
        super().__init__()
        like = base.weight
        self.down = _down(base, channels)
        self.up = _up(base, channels)
        self.gain = None if gain is None else nn.Parameter(gain.to(like.device, like.dtype))

    def maps(self) -> tuple[Map, Map]:
        """Return Down, (B, I, ...) -> (B, G M, ...), and Up, (B, G M, ...) -> (B, O, ...)."""
        return self.down, self.up

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the trained parameters by name; Down and Up come first, as in older checkpoints' optimizer state."""
        named = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        return sorted(named, key=lambda one: "." not in one[0])

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return the weights of Down, (G M, I / G, K...), and Up, (O, M, 1...), differentiable and unscaled."""
        return self.down.weight, self.up.weight


def groups_of(layer: Dense) -> int:
    """Return the number of groups of a convolution; 1 for a linear layer."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _down(base: Dense, channels: int) -> Dense:
    """Copy the layer with ``channels`` outputs for each of its groups, and without a bias."""
    outputs = groups_of(base) * channels
    weight = torch.empty(outputs, *base.weight.shape[1:], device=base.weight.device, dtype=base.weight.dtype)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    down = copy.deepcopy(base, memo={id(base.weight): nn.Parameter(weight), id(base.bias): None})
    vars(down).update({name: hooks for name, hooks in vars(nn.Module()).items() if name in HOOKS})
    setattr(down, "out_features" if isinstance(base, nn.Linear) else "out_channels", outputs)
    return down


def _up(base: Dense, channels: int) -> Dense:
    like: Any = {"device": base.weight.device, "dtype": base.weight.dtype}
    if isinstance(base, nn.Linear):
        return nn.Linear(channels, base.out_features, bias=False, **like)
    kind = next(k for k in ADAPTABLE[1:] if isinstance(base, k))
    return kind(base.groups * channels, base.out_channels, 1, groups=base.groups, bias=False, **like)
