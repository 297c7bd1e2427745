"""Choose layers of a network and put adapters on them: match all, check all, then replace all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from metalora.adapters.factors import ADAPTABLE
from metalora.adapters.formats import Format
from metalora.adapters.layer import AdaptedLayer
from metalora.adapters.patterns import lookup, select
from metalora.adapters.probe import Uses
from metalora.adapters.seed_slot import SeedSlot
from metalora.adapters.support import check, refusal
from metalora.errors import UserError, given_as
from metalora.reading import short

MAX_ALPHA = 1e6  # the update is a small thing beside the weight it is added to


@dataclass(frozen=True)
class Placement:
    """The rank and the alpha of one layer."""

    rank: int
    alpha: float

    def check(self) -> None:
        """Check that alpha gives a usable scale, alpha / rank.

        Raises:
            UserError: alpha is out of range.
        """
        if not 0 < self.alpha <= MAX_ALPHA:
            raise UserError(f"alpha {short(self.alpha)} is out of range: above 0, at most {MAX_ALPHA:g}")


def find_targets(
    network: nn.Module,
    target_modules: Sequence[str] = ("auto",),
    exclude_modules: Sequence[str] = (),
    modules_to_save: Sequence[str] = (),
    uses: Uses | None = None,
    seeded: bool = True,
) -> list[str]:
    """Return the names of the layers to adapt, in module order.

    ``auto`` is every dense convolution and linear layer except the stem and the classifier. A network may name
    these two in an attribute ``exempt_modules``. Otherwise the stem is the first such layer, and the classifier is
    the last one if it is linear. ``auto`` leaves out layers whose weight is used directly, or whose input has no row
    for each image. Layers inside ``modules_to_save`` are never adapted: they are trained in full.

    Args:
        network: The network.
        target_modules: Patterns of the layers to adapt.
        exclude_modules: Patterns of the modules to leave alone.
        modules_to_save: Names of modules trained in full.
        uses: How the network uses its layers; default: it calls each with rows of images.
        seeded: Whether each image has its own seed.

    Raises:
        UserError: a pattern matches nothing, nothing is left, or a layer asked for cannot be adapted.
    """
    modules = dict(network.named_modules())
    layers = [name for name, module in modules.items() if name and isinstance(module, ADAPTABLE)]
    uses = Uses(set(layers), set(layers), set()) if uses is None else uses
    asked = [pattern for pattern in target_modules if pattern != "auto"]
    # A full name may also name what is then refused.
    names = set(select(asked, [*layers, *(set(asked) & modules.keys() - set(layers))], "target_modules"))
    if "auto" in target_modules:
        names.update(name for name in _auto(network, modules, layers) if name in uses.batched - uses.bypassed)
    excluded = set(select(exclude_modules, layers, "exclude_modules"))
    excluded |= {name for name in names for whole in modules_to_save if f"{name}.".startswith(f"{whole}.")}
    targets = [name for name in modules if name in names and name not in excluded]
    if not targets:
        raise UserError(f"target_modules {list(target_modules)}: no layer of {type(network).__name__} is left to adapt"
                        f"{given_as('target_modules', 'exclude_modules')}")  # fmt: skip
    for name in targets:
        reason = refusal(modules[name])
        if not reason and name in uses.bypassed:
            parent = type(modules[name.rpartition(".")[0]]).__name__
            reason = f"{parent} uses its weight directly and would bypass the adapter"
        if not reason and name not in uses.called:
            reason = "the network does not call it, so an adapter would have no effect"
        if not reason and seeded and name not in uses.batched:
            reason = "its input has no row for each image, so it cannot take a seed for each"
        if reason:
            raise UserError(f"module {name!r} cannot be adapted: {reason}")
    return targets


def place(
    names: Sequence[str],
    rank: int | Mapping[str, int],
    alpha: float | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
) -> dict[str, Placement]:
    """Give every layer its rank and alpha (default: alpha = its rank, a scale of 1).

    Args:
        names: The layers.
        rank: R, or the rank of each layer by name; then ``rank_pattern`` is not used.
        alpha: Alpha.
        rank_pattern: Rank by module pattern; the first match wins.
        alpha_pattern: Alpha by module pattern; the first match wins.

    Raises:
        UserError: a pattern matches none of the layers.
    """
    select(rank_pattern or {}, names, "rank_pattern")
    select(alpha_pattern or {}, names, "alpha_pattern")
    ranks = rank if isinstance(rank, Mapping) else {name: lookup(rank_pattern or {}, name, rank) for name in names}
    return {
        name: Placement(ranks[name], lookup(alpha_pattern or {}, name, alpha if alpha is not None else ranks[name]))
        for name in names
    }


def check_placements(network: nn.Module, placements: Mapping[str, Placement]) -> None:
    """Check that `inject` can put adapters on all these layers.

    Raises:
        UserError: no such module, or one that cannot take its rank.
    """
    modules = dict(network.named_modules())
    for name, placement in placements.items():
        if name not in modules:
            raise UserError(f"the network has no module {short(name)}")
        try:
            check(modules[name], placement.rank)
            placement.check()
        except UserError as error:
            raise UserError(
                f"module {name!r}: {error} (--exclude-modules or --rank-pattern can set it apart)"
            ) from None


def inject(
    network: nn.Module,
    format: Format,
    placements: Mapping[str, Placement],
    slot: SeedSlot,
    seed_slices: Mapping[str, slice],
) -> dict[str, AdaptedLayer]:
    """Replace layers by `AdaptedLayer`s, in place.

    Args:
        network: The network.
        format: The decomposition format.
        placements: Rank and alpha by layer name.
        slot: The model's seed slot.
        seed_slices: Each layer's part of the seeds.

    Returns:
        The adapted layers by name.

    Raises:
        UserError: no such module, or one that cannot take its rank. The network is as it was.
    """
    check_placements(network, placements)
    modules = dict(network.named_modules())
    adapted = {
        name: AdaptedLayer(modules[name], format, placement.rank, placement.alpha, slot, seed_slices[name])
        for name, placement in placements.items()
    }
    replace(network, {modules[name]: layer for name, layer in adapted.items()})
    return adapted


def replace(network: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules by others, wherever in the network they are registered."""
    for parent in list(network.modules()):
        for attribute, child in list(parent._modules.items()):  # named_children() leaves out second names
            if child is not None and child in replacements and parent is not replacements[child]:
                setattr(parent, attribute, replacements[child])


def _auto(network: nn.Module, modules: Mapping[str, nn.Module], layers: Sequence[str]) -> list[str]:
    ends = [
        name
        for i, name in enumerate(layers)
        if i == 0 or (i == len(layers) - 1 and isinstance(modules[name], nn.Linear))
    ]
    apart = getattr(network, "exempt_modules", ends)
    dense = [name for name in layers if getattr(modules[name], "groups", 1) == 1]
    return [name for name in dense if name not in apart and not refusal(modules[name])]
