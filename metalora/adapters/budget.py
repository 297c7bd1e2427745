"""Ranks for a parameter budget, so that formats compare at equal trainable parameters."""

from collections.abc import Callable, Mapping

from torch import nn

from metalora.adapters.formats import Format
from metalora.adapters.support import largest_rank, shape_of
from metalora.errors import UserError, given_as


def fit_ranks(
    layers: Mapping[str, nn.Module],
    format: Format,
    budget: int,
    mapping_size: Callable[[Mapping[str, int]], int],
) -> dict[str, int]:
    """Pick the largest ranks whose parameters fit into a budget.

    First comes the largest rank that fits for all layers; a layer too small for it gets its own largest rank. Then,
    in module order, as many layers as still fit get one more. A tensor ring's size grows with R^2, so equal ranks
    alone would leave much of the budget unused.

    Args:
        layers: The layers to adapt, by name.
        format: The decomposition format.
        budget: The largest number of parameters of adapters and mapping net together.
        mapping_size: The mapping net's parameters for given ranks (0 for a format without generated seeds).

    Returns:
        Rank by layer name.

    Raises:
        UserError: rank 1 in every layer already exceeds the budget.
    """

    def size(ranks: Mapping[str, int]) -> int:
        return sum(format.size(shape_of(layers[name], rank)) for name, rank in ranks.items()) + mapping_size(ranks)

    largest = {name: largest_rank(layer) for name, layer in layers.items()}
    ranks = dict.fromkeys(layers, 1)
    if size(ranks) > budget:
        raise UserError(
            f"parameter_budget {budget} is too small: rank 1 takes {size(ranks)} parameters "
            "(fewer target_modules or a narrower mapping net take less)"
            f"{given_as('parameter_budget', 'target_modules')}"
        )
    for rank in range(2, max(largest.values()) + 1):
        higher = {name: min(rank, largest[name]) for name in layers}
        if size(higher) > budget:
            break
        ranks = higher
    for name in layers:
        one_more = {**ranks, name: min(ranks[name] + 1, largest[name])}
        if size(one_more) <= budget:
            ranks = one_more
    return ranks
