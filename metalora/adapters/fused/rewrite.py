"""Fuse what can be fused: a traced copy of a network's forward, in which one module does a whole epilogue.

The modules of the network stay as they are, and the copy refers to them: it is one more way to run them.
"""

import logging
import math
import operator
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from metalora.adapters.fused.ops import FusedConv2d, padded
from metalora.adapters.layer import AdaptedLayer
from metalora.adapters.seed_slot import Call

_log = logging.getLogger(__name__)
RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
MOST_CHANNELS = 64  # of an update; more would not stay in a kernel's registers


class FusedConv(nn.Module):
    """out = act(bn(adapted convolution(x)) + residual), computed by `FusedConv2d`.

    The batch norm, bn(y) = a y + t with a = gamma / sqrt(var + eps), is frozen: a is folded into the frozen weight,
    in float64 before rounding to ``dtype``, and into Up. Below that weight lies a copy of Down, made anew each time.

    Args:
        layer: The adapted convolution.
        norm: The frozen batch norm that follows it, if any.
        ceiling: The cap of the ReLU that follows, infinity for a plain ReLU; None if no ReLU follows.
        outputs: 2 if two operations read the output: each gets its own, so that their gradients come separately and
            are added where they are read.
        dtype: The type that is computed in.
    """

    stacked: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self, layer: AdaptedLayer, norm: nn.BatchNorm2d | None, ceiling: float | None, outputs: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        base = layer.base
        assert isinstance(base, nn.Conv2d)
        self.layer = layer
        self.ceiling = ceiling
        self.outputs = outputs
        self.dtype = dtype
        self.channels = layer.format.channels(layer.shape)
        self.geometry = (list(base.stride), list(base.padding), list(base.dilation))
        scale, shift = _affine(base, norm)
        frozen = (base.weight.detach().double() * scale[:, None, None, None]).to(dtype)
        stacked = frozen.new_zeros(base.out_channels + padded(self.channels), *frozen.shape[1:])
        stacked[: base.out_channels] = frozen
        exact = torch.promote_types(dtype, torch.float32)
        self.register_buffer("stacked", stacked.contiguous(memory_format=torch.channels_last), persistent=False)
        self.register_buffer("scale", (scale * layer.scale).to(exact), persistent=False)
        self.register_buffer("shift", shift.to(exact), persistent=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """Map (N, I, H, W) to (N, O, H', W'), or to two of the same."""
        layer, first = self.layer, self.layer.base.weight.shape[0]
        down, up = layer.factors.pair()
        with torch.no_grad():
            self.stacked[first : first + self.channels].copy_(down)
        return FusedConv2d.apply(
            x.to(self.dtype, memory_format=torch.channels_last),
            self.stacked,
            down,
            layer.mixing(x.shape[0]),
            up,
            self.scale,
            self.shift,
            None if residual is None else residual.to(self.dtype, memory_format=torch.channels_last),
            self.ceiling,
            self.geometry,
            self.outputs,
        )


class _Tracer(fx.Tracer):
    """Looks into modules only as far as there are adapted layers in them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, AdaptedLayer) or not any(isinstance(inner, AdaptedLayer) for inner in m.modules())


def fuse(
    network: nn.Module, input_size: tuple[int, ...], dtype: torch.dtype | None = None
) -> tuple[fx.GraphModule | None, int]:
    """Return a copy of a network's forward with fused convolutions, and their number.

    The copy is valid for the mode (train or eval) that the network is in now.

    Args:
        network: A network with adapted layers; they are switched off while it is traced.
        input_size: (3, H, W) of an image.
        dtype: The type that the fused convolutions compute in; None: the network's own.

    Returns:
        None and 0 if there is nothing to fuse, or if a trace would differ from the network's forward: it cannot be
        traced, it draws random numbers in Python, or its modules have hooks.
    """
    layers = [module for module in network.modules() if isinstance(module, AdaptedLayer)]
    like = layers[0].weight
    try:
        _refuse_hooks(network)
        drawn = _generators()
        with layers[0].slot.within(Call(enabled=False)):
            graph = fx.GraphModule(network, _Tracer().trace(network))
        if drawn != _generators():
            raise RuntimeError("random numbers decide what it does")
        with layers[0].slot.within(Call(enabled=False)), torch.no_grad():
            ShapeProp(graph).propagate(torch.zeros(2, *input_size, device=like.device, dtype=like.dtype))
    except Exception as error:  # tracing runs the network's own code, which may do anything that a trace does not take
        _log.info("nothing is fused: the network's forward cannot be traced (%s)", error)
        return None, 0
    _split_norms(graph)
    _drop_identities(graph)
    modules = dict(graph.named_modules())
    fused = sum([_fuse_at(graph, node, modules, dtype or like.dtype) for node in list(graph.graph.nodes)])
    graph.graph.lint()
    graph.recompile()
    return (graph, fused) if fused else (None, 0)


def _refuse_hooks(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise RuntimeError(f"{name or 'it'} has hooks")


def _generators() -> tuple[Any, ...]:
    """Return the states of the random number generators that Python code draws from."""
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def _split_norms(graph: fx.GraphModule) -> None:
    """Take timm's modules of batch norm, dropout and activation apart."""
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        whole = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(whole).__name__ != "BatchNormAct2d" or not isinstance(whole, nn.BatchNorm2d) or whole.training:
            continue
        norm = nn.BatchNorm2d(whole.num_features, whole.eps, affine=whole.affine).eval()
        for name, tensor in (*whole.named_parameters(recurse=False), *whole.named_buffers(recurse=False)):
            setattr(norm, name, tensor)
        graph.add_submodule(f"norm_{node.name}", norm)
        with graph.graph.inserting_before(node):
            part = graph.graph.call_module(f"norm_{node.name}", node.args)
            part.meta = node.meta
            for name in ("drop", "act"):
                part = graph.graph.call_module(f"{node.target}.{name}", (part,))
                part.meta = node.meta
        node.replace_all_uses_with(part)
        graph.graph.erase_node(node)


def _drop_identities(graph: fx.GraphModule) -> None:
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _fuse_at(graph: fx.GraphModule, node: fx.Node, modules: Mapping[str, nn.Module], dtype: torch.dtype) -> bool:
    """Replace an adapted convolution and the operations after it, if it can be fused."""
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(layer, AdaptedLayer) or not _fusible(layer):
        return False
    end, norm, residual, ceiling = node, None, None, None
    follower = _only_user(end)
    if follower is not None and _is_frozen_norm(follower, modules):
        end, norm = follower, modules[str(follower.target)]
        follower = _only_user(end)
    if follower is not None and (other := _addend(follower, end)) is not None:
        end, residual = follower, other
        follower = _only_user(end)
    if follower is not None and (ceiling := _relu_ceiling(follower, modules)) is not None:
        end = follower
    users = list(end.users)
    outputs = 2 if len(users) == 2 else 1
    name = f"fused_{node.name}"  # not the layer's: what follows it may differ from call to call
    assert norm is None or isinstance(norm, nn.BatchNorm2d)
    graph.add_submodule(name, FusedConv(layer, norm, ceiling, outputs, dtype))
    with graph.graph.inserting_before(end):
        whole = graph.graph.call_module(name, (node.args[0],) if residual is None else (node.args[0], residual))
        parts = [graph.graph.call_function(operator.getitem, (whole, i)) for i in range(2)] if outputs == 2 else [whole]
    for part, user in zip(parts if outputs == 2 else parts * len(users), users, strict=True):
        user.replace_input_with(end, part)
        part.meta = end.meta
    while end is not node:  # backwards, so that nothing that is removed is still read
        previous = next(n for n in end.all_input_nodes if n is not residual)
        graph.graph.erase_node(end)
        end = previous
    graph.graph.erase_node(node)
    return True


def _fusible(layer: AdaptedLayer) -> bool:
    base = layer.base
    if not isinstance(base, nn.Conv2d) or type(base).forward is not nn.Conv2d.forward:  # it may pad by itself
        return False
    plain = base.groups == 1 and base.padding_mode == "zeros"
    plain = plain and not isinstance(base.padding, str)
    return plain and not layer.finishes and layer.format.channels(layer.shape) <= MOST_CHANNELS


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_frozen_norm(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    norm = modules.get(str(node.target)) if node.op == "call_module" else None
    return (
        type(norm) is nn.BatchNorm2d
        and not norm.training
        and norm.running_var is not None
        and not any(parameter.requires_grad for parameter in norm.parameters())
    )


def _relu_ceiling(node: fx.Node, modules: Mapping[str, nn.Module]) -> float | None:
    """Return the cap of a ReLU, or None if a node is no ReLU."""
    if node.op == "call_module":
        module = modules.get(str(node.target))  # None: a fused one, made since
        return math.inf if type(module) is nn.ReLU else 6.0 if type(module) is nn.ReLU6 else None
    return math.inf if node.op in ("call_function", "call_method") and node.target in RELUS else None


def _addend(node: fx.Node, to: fx.Node) -> fx.Node | None:
    """Return the other addend of a node, if it is a plain sum of two images of one size."""
    if node.op not in ("call_function", "call_method") or node.target not in SUMS or node.kwargs or len(node.args) != 2:
        return None
    others = [arg for arg in node.args if arg is not to]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    shapes = [getattr(n.meta.get("tensor_meta"), "shape", None) for n in (others[0], to)]
    return others[0] if shapes[0] == shapes[1] and shapes[0] is not None else None


def _affine(base: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Return a and t of bn(conv(x) + bias) = a conv(x) + t, (O,) each, in float64."""
    scale = torch.ones(base.out_channels, dtype=torch.float64, device=base.weight.device)
    shift = torch.zeros_like(scale) if base.bias is None else base.bias.detach().double()
    if norm is not None:
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.detach().double()
        shift = (shift - norm.running_mean.double()) * scale
        shift = shift if norm.bias is None else shift + norm.bias.detach().double()
    return scale, shift
