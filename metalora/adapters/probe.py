"""Finding out, by running a network, which of its layers an adapter would reach."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.support import ADAPTABLE
from metalora.errors import UserError

TOLERANCE = 1e-2


@torch.no_grad()
def probe(network: nn.Module, input_size: tuple[int, int, int]) -> tuple[set[str], set[str]]:
    """Run a network in eval mode on two images, and on the same two the other way round.

    An adapter on a layer that is not called has no effect and gets no gradient. A layer whose input is not one row
    (or several, side by side) for each image in turn, such as an MLP of a table of positions, cannot take one seed an
    image: it gets the same input, or rows in the same order, whichever image comes first.

    Args:
        network: The network; put in eval mode.
        input_size: (3, H, W) of an image.

    Returns:
        The names of the adaptable layers that were called, and of those of them that take rows of images.

    Raises:
        UserError: the network cannot take images of this size, or changes its own tensors in eval mode.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, ADAPTABLE)}
    reference = next(network.parameters(), torch.zeros(()))
    images = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    seen: list[dict[str, list[Tensor]]] = []
    network.eval()
    tensors = _tensors(network)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    changes: list[dict[str, Tensor]] = []
    try:
        for batch in (images, images.flip(0)):
            seen.append(_inputs(network, layers, batch.to(reference.device, reference.dtype)))
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
    called = set(seen[0])
    return called, {name for name in called if all(map(_follows, seen[0][name], seen[1][name]))}


def _inputs(network: nn.Module, layers: Mapping[str, nn.Module], batch: Tensor) -> dict[str, list[Tensor]]:
    """Run a batch; return one number for each row of each input of the layers that are called."""
    seen: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(_collector(name, seen), with_kwargs=True).remove)
        try:
            network(batch)
        except Exception as error:  # it is the user's code, which may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(
                f"{type(network).__name__} fails with images of shape {tuple(batch.shape[1:])} "
                f"(set by input_size): {reason}"
            ) from error
    return seen


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _equal(one: Tensor, other: Tensor | None) -> bool:
    alike = other is not None and (one.shape, one.dtype) == (other.shape, other.dtype)
    return alike and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)  # type: ignore[arg-type]


def _collector(name: str, seen: dict[str, list[Tensor]]) -> Any:
    def collect(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = args[0] if args else kwargs["input"]
        rows = x.flatten(1) if x.dim() > 1 else x.unsqueeze(0)
        direction = torch.arange(rows.shape[1], device=rows.device).mul(1.7).cos()
        seen.setdefault(name, []).append(rows.float() @ direction)

    return collect


def _follows(rows: Tensor, swapped: Tensor) -> bool:
    """Tell whether the rows of the two images change places with the images."""
    if len(rows) % 2 or len(rows) != len(swapped):
        return False
    return bool((rows.roll(len(rows) // 2) - swapped).abs().max() <= TOLERANCE * rows.abs().max())
