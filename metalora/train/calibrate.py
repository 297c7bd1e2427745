"""Measurements before the first step, for initializers that need them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from metalora.adapters.initializers import Facts
from metalora.group import Group
from metalora.models.model import MetaLoRAModel


def weight_gradients(
    model: MetaLoRAModel, batches: Iterable[Any], loss: Callable[[Any], Tensor], group: Group
) -> dict[str, Facts]:
    """Measure the gradients of the adapted layers' frozen weights; the weights do not change.

    The model is in eval mode: batch norms keep their statistics, and no random numbers are drawn.

    Args:
        model: The model, whose adapters are fresh.
        batches: This rank's batches; the gradient is the mean over all of them, and over the ranks.
        loss: Maps a batch to its mean loss under the model.
        group: The ranks.

    Returns:
        The gradients by layer name.
    """
    weights = {name: layer.base.weight for name, layer in model.layers.items()}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    model.eval()
    count = 0
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for batch in batches:
            gradients = torch.autograd.grad(loss(batch), list(weights.values()))
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient
            count += 1
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    return {name: Facts(gradient=group.mean(total / count)) for name, total in sums.items()}
