"""Finding out, by running a network, which of its layers an adapter would reach."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.layer import ADAPTABLE
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
        UserError: the network cannot take images of this size.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, ADAPTABLE)}
    reference = next(network.parameters(), torch.zeros(()))
    images = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    seen: list[dict[str, list[Tensor]]] = []
    network.eval()
    for batch in (images, images.flip(0)):
        seen.append({})
        with ExitStack() as hooks:
            for name, layer in layers.items():
                hooks.callback(layer.register_forward_pre_hook(_collector(name, seen[-1])).remove)
            try:
                network(batch.to(reference.device, reference.dtype))
            except (RuntimeError, ValueError, TypeError, AssertionError) as error:
                raise UserError(
                    f"{type(network).__name__} fails with images of shape {input_size} (set by input_size): "
                    f"{' '.join(str(error).split())[:300]}"
                ) from error
    called = set(seen[0])
    return called, {name for name in called if all(map(_follows, seen[0][name], seen[1][name]))}


def _collector(name: str, seen: dict[str, list[Tensor]]) -> Any:
    def collect(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(1) if inputs[0].dim() > 1 else inputs[0].unsqueeze(0)
        direction = torch.arange(rows.shape[1], device=rows.device).mul(1.7).cos()
        seen.setdefault(name, []).append(rows.float() @ direction)

    return collect


def _follows(rows: Tensor, swapped: Tensor) -> bool:
    """Tell whether the rows of the two images change places with the images."""
    if len(rows) % 2 or len(rows) != len(swapped):
        return False
    return bool((rows.roll(len(rows) // 2) - swapped).abs().max() <= TOLERANCE * rows.abs().max())
