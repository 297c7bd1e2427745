"""Embed images: each rank computes its share, and every rank gets the whole result."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from metalora.data.dataset import Batch
from metalora.group import Group


def embed(
    function: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    batches: Iterable[Batch],
    group: Group,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Apply a function to all images of a split.

    Args:
        function: Maps codes (B, ...) and their table rows (B,) to tensors (B, ...).
        batches: The batches of this rank's share.
        group: The ranks.

    Returns:
        The table rows (N,) and the function's results (N, ...), on the CPU, in rank order.
    """
    rows: list[Tensor] = []
    outputs: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for batch in batches:
            results = function(batch.codes, batch.rows)
            outputs.append(tuple(result.detach().float() for result in results))
            rows.append(batch.rows)
    # A rank may have no share of a small split, and then does not know how many results there are.
    width = max(group.gather_objects(len(outputs[0]) if outputs else 0))
    columns = [torch.cat(column) for column in zip(*outputs, strict=True)]
    gathered = tuple(group.gather_rows(columns[i] if columns else None) for i in range(width))
    return group.gather_rows(torch.cat(rows) if rows else None), gathered
