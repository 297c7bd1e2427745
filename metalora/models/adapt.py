"""Putting a backbone, its adapters, the mapping net and the extractor together."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.budget import fit_ranks
from metalora.adapters.formats import build_format
from metalora.adapters.inject import find_targets, inject, place, replace
from metalora.adapters.patterns import select
from metalora.adapters.probe import attempt, empty_images, probe
from metalora.adapters.seed_slot import SeedSlot
from metalora.errors import UserError
from metalora.models.extractor import Extractor, early_layers
from metalora.models.mapping import MappingNet, mapping_size, seed_layout
from metalora.models.model import MetaLoRAModel
from metalora.models.network import AdaptedNetwork
from metalora.models.plain import copy_shared, described, identify, plain
from metalora.models.spec import AdapterSpec, _check_settings, _outermost


def adapt(
    backbone: nn.Module,
    format: str = "tr",
    rank: int = 4,
    alpha: float | None = None,
    *,
    branches: int = 4,
    target_modules: Sequence[str] | str = ("auto",),
    exclude_modules: Sequence[str] | str = (),
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    modules_to_save: Sequence[str] | str = (),
    parameter_budget: int | None = None,
    extractor: nn.Module | None = None,
    extractor_features: str = "stats",
    seed_scope: str = "layer",
    mapping_depth: int = 2,
    mapping_width: int = 32,
    labels: Sequence[str] = (),
    input_size: tuple[int, int, int] | None = None,
) -> MetaLoRAModel:
    """Put adapters on a copy of a backbone; the backbone given stays as it is.

    Args:
        backbone: Any network of images whose output is (B, features); what it is wrapped in is left off (see `plain`).
        format: ``lora``, ``multi_lora``, ``cp`` or ``tr``.
        rank: R (``tr`` uses R R channels).
        alpha: The update is scaled by alpha / rank; default alpha = rank.
        branches: Parallel branches of ``multi_lora``.
        target_modules: ``auto``, names, name endings, globs, ``re:`` regular expressions.
        exclude_modules: Layers to leave alone, written likewise.
        rank_pattern: Rank by module pattern.
        alpha_pattern: Alpha by module pattern.
        modules_to_save: Modules trained in full and saved with the adapter.
        parameter_budget: Pick the ranks to fit this many parameters, mapping net included.
        extractor: The network whose features make the seeds; default: the backbone, unadapted.
        extractor_features: ``stats``, ``pooled`` or ``both``; see `Extractor`.
        seed_scope: ``layer``, or ``shared``: one seed for all layers of a rank.
        mapping_depth: Layers of the mapping net before its heads.
        mapping_width: Their width.
        labels: Class names, to add a linear head for.
        input_size: (3, H, W) of an image, for a backbone that has no ``input_size``; default (3, 224, 224).

    Returns:
        The model, with only adapters, mapping net, head and saved modules requiring gradients.

    Raises:
        UserError: an unknown format, a target that matches nothing or cannot be adapted, a rank that does not fit; a
            backbone or extractor that `plain` refuses, that cannot take the images, or that returns something else.
    """
    _check_settings(branches, extractor_features, seed_scope, mapping_depth, mapping_width)
    backbone = plain(backbone)
    extractor = None if extractor is None else plain(extractor, "extractor")
    kind = build_format(format, branches)
    inner = [name for name, _ in backbone.named_modules() if name]
    saved = _outermost(select(_several(modules_to_save), inner, "modules_to_save"))
    size = _input_size(input_size, backbone)
    seeded = kind.seed == "generated"
    uses = probe(copy_shared(backbone), size)
    names = find_targets(backbone, _several(target_modules), _several(exclude_modules), saved, uses, seeded)
    layers = {name: backbone.get_submodule(name) for name in names}
    condition_size = 0
    looked_at: tuple[str, ...] = ()
    if seeded:
        source = copy_shared(backbone if extractor is None else extractor)
        looked_at = early_layers(source, (uses if extractor is None else probe(source, size)).batched)
        condition_size = _width(Extractor(source, extractor_features, looked_at), size, "the extractor")

    if parameter_budget is None:
        placements = place(names, rank, alpha, rank_pattern, alpha_pattern)
    elif rank_pattern:
        raise UserError("parameter_budget picks the ranks itself: leave out rank_pattern")
    else:

        def cost(ranks: Mapping[str, int]) -> int:
            seeds = seed_layout(kind, ranks, seed_scope)[1].numel()
            return mapping_size(condition_size, seeds, mapping_depth, mapping_width) if seeds else 0

        ranks = fit_ranks(layers, kind, parameter_budget, cost)
        placements = place(names, ranks, alpha, None, alpha_pattern)

    spec = AdapterSpec(
        format=format,
        branches=branches,
        layers=placements,
        modules_to_save=saved,
        seed_scope=seed_scope,
        mapping_depth=mapping_depth,
        mapping_width=mapping_width,
        extractor_features=extractor_features,
        extractor_layers=looked_at,
        condition_size=condition_size,
        labels=tuple(labels),
        feature_size=_width(copy_shared(backbone), size, "the backbone") if labels else 0,
    )
    model = assemble(backbone, spec, extractor)
    _check_reached(model, size)
    return model


@torch.no_grad()
def _check_reached(model: MetaLoRAModel, size: tuple[int, int, int]) -> None:
    """Refuse adapters that the network passes by, as it does where a list of its own holds the layer too.

    Raises:
        UserError: a layer's adapter is never run.
    """
    missed = set(model.layers)
    mode = model.training
    with ExitStack() as hooks:
        for name, layer in model.layers.items():
            hooks.callback(layer.down.register_forward_pre_hook(lambda *_, name=name: missed.discard(name)).remove)
        model.eval()(empty_images(model.network.backbone, size))
    model.train(mode)
    if missed:
        raise UserError(
            f"module {min(missed)!r} cannot be adapted: the network holds it in a plain list, dict or the like too and "
            "calls it from there, past the adapter (nn.ModuleList and nn.ModuleDict will do)"
        )


def assemble(backbone: nn.Module, spec: AdapterSpec, extractor: nn.Module | None = None) -> MetaLoRAModel:
    """Build the model of a spec, with fresh adapters, on a copy of a plain backbone, and in its mode.

    Raises:
        UserError: the backbone lacks a module of the spec, or one cannot take its rank.
    """
    spec.check(backbone, extractor)
    format = build_format(spec.format, spec.branches)
    identity_of_backbone = identify(backbone)
    backbone = copy.deepcopy(backbone).requires_grad_(False)
    frozen = mapping = None
    if format.seed == "generated":
        source = copy_shared(backbone) if extractor is None else copy.deepcopy(extractor).requires_grad_(False)
        frozen = Extractor(source, spec.extractor_features, spec.extractor_layers)
    slices, identity = seed_layout(format, {name: p.rank for name, p in spec.layers.items()}, spec.seed_scope)
    slot = SeedSlot(slices.values())
    original = copy_shared(backbone) if spec.modules_to_save else None
    saved = {name: copy.deepcopy(backbone.get_submodule(name)).requires_grad_(True) for name in spec.modules_to_save}
    layers = inject(backbone, format, spec.layers, slot, slices)
    replace(backbone, {backbone.get_submodule(name): module for name, module in saved.items()})
    if frozen is not None:
        mapping = MappingNet(spec.condition_size, identity, spec.mapping_depth, spec.mapping_width)
    model = MetaLoRAModel(
        AdaptedNetwork(backbone, mapping, slot, saved, original),
        frozen,
        nn.Linear(spec.feature_size, len(spec.labels)) if spec.labels else None,
        layers,
        spec,
        identity_of_backbone,
        None if extractor is None else identify(extractor),
    )
    reference = next(backbone.parameters())
    for part in (model.network.mapping, model.head):
        if part is not None:
            part.to(reference.device)
    return model.train(backbone.training)


def _width(network: nn.Module, size: tuple[int, int, int], what: str) -> int:
    """Return the width of a network's output, from two empty images."""
    output = attempt(network, empty_images(network, size), what)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        raise UserError(
            f"{what} must map images to (B, features), got {described(output)} for two images "
            "(a module around it may choose what it returns)"
        )
    return int(output.shape[1])


def _input_size(given: Any, backbone: nn.Module) -> tuple[int, int, int]:
    """Return (3, H, W): as given, else as the backbone says, else what most networks take."""
    size = given or getattr(backbone, "input_size", None) or (3, 224, 224)
    if not isinstance(size, Sequence) or len(size) != 3 or any(not isinstance(n, int) or n < 1 for n in size):
        raise UserError(f"input_size must be (channels, height, width) of an image, got {size!r}")
    return (size[0], size[1], size[2])


def _several(patterns: Sequence[str] | str) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
