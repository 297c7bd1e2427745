"""Take a network as a backbone or an extractor: without its wrappers, checked and identified."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from metalora.adapters.layer import AdaptedLayer
from metalora.errors import UserError
from metalora.models.backbones.weights import state_hash

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")  # as torch.compile and torch's checkpoint wrappers name it


def plain(network: Any, role: str = "backbone") -> nn.Module:
    """Copy a network's structure without wrappers, and check it; its tensors are the same objects.

    Wrappers around it or around parts of it are left off: ``torch.compile``, data parallelism, averaging, checkpoint
    wrappers. So an adapter fits the network however it was wrapped. Wrap the adapted model instead.

    Args:
        network: The network.
        role: Name of the network in error messages.

    Raises:
        UserError: the network is no module, has adapters, cannot be copied, or has tensors that are not plain or have
            no values.
    """
    if not isinstance(network, nn.Module):
        met = " ".join(repr(network).split())
        raise UserError(f"the {role} must be a torch.nn.Module, got {met if len(met) <= 100 else met[:100] + '...'}")
    inner = _unwrapped(network)
    name = f"the {role} {type(inner).__name__}"
    if any(isinstance(module, AdaptedLayer) for module in inner.modules()):
        raise UserError(f"{name} has adapters already: pass the plain network")
    if isinstance(inner, torch.jit.ScriptModule):
        raise UserError(f"{name} is TorchScript, whose layers cannot be replaced: pass the Python network")
    for tensor_name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        reason = _refusal(tensor)
        if reason:
            raise UserError(f"{name} cannot be used: tensor {tensor_name!r} {reason}")
    for tensor_name, value in inner.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(f"{name} cannot be used: its state {tensor_name!r} is a {type(value).__name__}, no tensor")
    return copy_shared(inner)


def copy_shared(network: nn.Module) -> nn.Module:
    """Copy a network's structure without wrappers; parameters and buffers are the same objects and take no memory.

    Raises:
        UserError: the network holds something that cannot be copied.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        for module in reversed(list(network.modules())):  # inner ones first
            inner = _unwrapped(module)
            if inner is not module:
                memo[id(module)] = copy.deepcopy(inner, memo)
        return copy.deepcopy(network, memo)
    except Exception as error:  # it is the user's code, which may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{type(network).__name__} cannot be copied, as adapting it needs: {reason}") from error


def identify(network: nn.Module) -> dict[str, Any]:
    """Return a network's name, the name of its weights, its input size and the hash of its tensors."""
    return {
        "name": str(getattr(network, "name", type(network).__name__)),
        "weights": str(getattr(network, "weights", "unknown")),
        "input_size": getattr(network, "input_size", None),
        "hash": state_hash(network),
    }


def described(output: Any) -> str:
    """Describe a network's output in a few words."""
    if isinstance(output, Tensor):
        return f"shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(repr, output))}"
    return f"a {type(output).__name__}" + (f" of {len(output)}" if isinstance(output, tuple | list) else "")


def _unwrapped(network: nn.Module) -> nn.Module:
    while True:
        inner = next((network._modules[name] for name in WRAPPED if name in network._modules), None)
        if inner is None and isinstance(network, WRAPPERS):
            inner = network.module
        if inner is None:
            return network
        network = inner


def _refusal(tensor: Tensor) -> str | None:
    """Return why a network with such a tensor cannot be used, or None."""
    if nn.parameter.is_lazy(tensor):
        return "has no size before the first forward: run the network on an image first"
    if tensor.is_meta:
        return "is on the meta device and has no values: load the weights first"
    if tensor.is_quantized or is_traceable_wrapper_subclass(tensor):
        return f"is a {type(tensor).__name__}: sharded and quantized tensors cannot be copied and identified"
    return None
