"""Run a network once to see which layers are called, and which take one row per image."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalora.adapters.factors import ADAPTABLE
from metalora.errors import UserError

TOLERANCE = 1e-2


class Uses(NamedTuple):
    """How a network uses its adaptable layers.

    Attributes:
        called: The layers that it calls.
        batched: The called layers whose input has rows for each image.
        bypassed: The layers whose weight it uses in another way than by calling them.
    """

    called: set[str]
    batched: set[str]
    bypassed: set[str]


@torch.no_grad()
def probe(network: nn.Module, samples: Tensor) -> Uses:
    """Run a network in eval mode on two samples, then on the same two in the opposite order.

    An adapter on a layer that is not called has no effect and gets no gradient. An adapter on a layer whose weight is
    used directly is passed by. A layer can take one seed per sample only if its input has one row, or several side by
    side, for each sample in turn. An MLP on a table of positions does not: its input, or the order of its rows, stays
    the same whichever sample comes first.

    Args:
        network: The network; it is put in eval mode.
        samples: Two different samples, (2, ...), as the network takes them: for example images, (2, 3, H, W).

    Raises:
        UserError: the network cannot take the samples, or changes its own tensors in eval mode.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, ADAPTABLE)}
    watches: list[_Watch] = []
    tensors = _tensors(network)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    changes: list[dict[str, Tensor]] = []
    try:
        for batch in (samples, samples.flip(0)):
            watches.append(_watch(network, layers, batch))
            changes.append(
                {name: t.clone() for name, t in _tensors(network).items() if not _equal(t, before.get(name))}
            )
    finally:  # the user's network has the same tensors
        for name, tensor in tensors.items():
            if not _equal(tensor, before[name]):
                tensor.data.copy_(before[name])
    for name, tensor in changes[1].items():
        if not _equal(tensor, changes[0].get(name)):  # a cache that is filled once may be
            raise UserError(
                f"tensor {name!r} of {type(network).__name__} changes whenever the network runs, even in eval mode: "
                "a frozen backbone must stay as it is"
            )
    one, other = (watch.rows for watch in watches)
    batched = {name for name in one if all(map(_follows, one[name], other[name]))}
    return Uses(set(one), batched, watches[0].bypassed)


def noise(network: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    """Return two images of noise, (2, 3, H, W), of a network's dtype and on its device."""
    reference = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)).to(reference)


@torch.no_grad()
def attempt(network: nn.Module, samples: Tensor, name: str) -> Any:
    """Run a network in eval mode.

    Raises:
        UserError: the network raises an error.
    """
    try:
        return network.eval()(samples)
    except UserError:
        raise
    except Exception as error:  # it is the user's code, which may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        kind, told = ("images", " (set by input_size)") if samples.dim() == 4 else ("samples", "")
        raise UserError(
            f"{name} fails with {kind} of shape {tuple(samples.shape[1:])}{told}, two at a time: {reason}"
        ) from error


class _Watch(TorchDispatchMode):
    """Sees the inputs of layers, and operations with their weights that are not their own."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: dict[str, list[Tensor]] = {}
        self.bypassed: set[str] = set()
        self.running: list[str] = []
        self.owners: dict[int, set[str]] = {}  # of a weight's memory, which two layers may share
        for name, layer in layers.items():
            weight = layer._parameters.get("weight")
            if weight is not None and not isinstance(weight, nn.parameter.UninitializedParameter):
                self.owners.setdefault(weight.untyped_storage()._cdata, set()).add(name)

    def call(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a layer."""
        self.rows.setdefault(name, []).append(_numbers(args[0] if args else kwargs["input"]))
        self.running.append(name)
        try:
            return forward(*args, **kwargs)
        finally:
            self.running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.__name__.startswith("new_") and "_like" not in func.__name__:  # these read no values
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                    owners = self.owners.get(tensor.untyped_storage()._cdata, set())
                    self.bypassed |= set() if owners & set(self.running) else owners
        return func(*args, **(kwargs or {}))


def _watch(network: nn.Module, layers: Mapping[str, nn.Module], batch: Tensor) -> _Watch:
    """Run a batch, and return the watch with what it has seen."""
    watch = _Watch(layers)
    with _watched(layers, watch), watch:
        attempt(network, batch, type(network).__name__)
    return watch


@contextmanager
def _watched(layers: Mapping[str, nn.Module], watch: _Watch) -> Iterator[None]:
    """Tell of calls of layers within the block. Not by hooks: torch's transformers take other ways if there are any."""
    before = {name: layer.__dict__.get("forward") for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.__dict__["forward"] = partial(watch.call, name, layer.forward)
    try:
        yield
    finally:
        for name, layer in layers.items():
            del layer.__dict__["forward"]
            if before[name] is not None:
                layer.__dict__["forward"] = before[name]


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _equal(one: Tensor, other: Tensor | None) -> bool:
    alike = other is not None and (one.shape, one.dtype) == (other.shape, other.dtype)
    return alike and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)  # type: ignore[arg-type]


def _numbers(x: Tensor) -> Tensor:
    """Return one number for each row."""
    rows = x.flatten(1) if x.dim() > 1 else x.unsqueeze(0)
    direction = torch.arange(rows.shape[1], device=rows.device).mul(1.7).cos()
    return rows.float() @ direction


def _follows(rows: Tensor, swapped: Tensor) -> bool:
    """Tell whether the rows of the two images change places with the images."""
    if len(rows) % 2 or len(rows) != len(swapped):
        return False
    return bool((rows.roll(len(rows) // 2) - swapped).abs().max() <= TOLERANCE * rows.abs().max())
