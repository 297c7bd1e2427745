"""Put adapters, a mapping net and an extractor on a backbone."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.budget import fit_ranks
from metalora.adapters.formats import FORMATS, Format
from metalora.adapters.initializers import INITIALIZERS, fill_layers
from metalora.adapters.inject import Placement, find_targets, inject, place, replace
from metalora.adapters.patterns import select
from metalora.adapters.probe import Uses, attempt, noise, probe
from metalora.adapters.seed_slot import SeedSlot
from metalora.adapters.support import shape_of
from metalora.config import AdapterConfig, MappingConfig, from_dict, old_names
from metalora.errors import UserError, given_as
from metalora.models.extractor import Extractor, early_layers
from metalora.models.mapping import MappingNet, mapping_size, seed_layout
from metalora.models.model import MetaLoRAModel
from metalora.models.network import AdaptedNetwork
from metalora.models.plain import copy_shared, described, identify, plain
from metalora.models.spec import AdapterSpec, outermost
from metalora.registry import Choice

STRUCTURE = ("extractor_features", "seed_scope", "mapping_depth", "mapping_width")
PATTERNS = ("target_modules", "exclude_modules", "modules_to_save")
EMPTY = ("rank_pattern", "alpha_pattern")  # may be None


def adapt(
    backbone: nn.Module,
    format: str | Mapping[str, Any] = "tr",
    rank: int = 4,
    alpha: float | None = None,
    *,
    extractor: nn.Module | None = None,
    labels: Sequence[str] = (),
    input_size: tuple[int, int, int] | None = None,
    **settings: Any,
) -> MetaLoRAModel:
    """Put adapters on a copy of a backbone; the given backbone is not changed.

    >>> import metalora, torch
    >>> backbone = metalora.build_backbone("resnet20", "none")
    >>> model = metalora.adapt(backbone, "cp", rank=2, target_modules=["conv1"], labels=["cat", "dog"])
    >>> model.logits(torch.zeros(1, 3, 28, 28)).shape
    torch.Size([1, 2])

    Args:
        backbone: Any network that maps images to (B, features); wrappers around it are left off (see `plain`).
        format: A format's name, or a mapping with its name and options: ``{"name": "multi_lora", "branches": 2}``.
        rank: R (``tr`` uses R^2 channels).
        alpha: The update is scaled by alpha / rank; default alpha = rank.
        extractor: The network whose features make the seeds; default: the backbone, unadapted.
        labels: Names of the classes, if a linear head is to be added.
        input_size: (3, H, W) of an image, for a backbone that has neither ``input_size`` nor ``inputs``; default
            (3, 224, 224).
        settings: Other settings of `AdapterConfig` (``target_modules``, ``rank_pattern``, ...), and the settings of
            `MappingConfig` in `STRUCTURE`. A single pattern needs no list around it.

    Returns:
        The model. Only adapters, mapping net, head and saved modules require gradients.

    Raises:
        UserError: a setting or format is unknown, a target matches nothing or cannot be adapted, or a rank does not
            fit; `plain` refuses the backbone or extractor, or it cannot take the images or returns something else.
    """
    sections: dict[str, dict[str, Any]] = {"adapter": {"format": format, "rank": rank, "alpha": alpha}, "mapping": {}}
    for name, value in settings.items():
        if name in old_names():
            raise UserError(f"setting {name!r} is now an option of a method: format={{'name': NAME, {name!r}: VALUE}}")
        if name in PATTERNS and isinstance(value, str):
            value = (value,)
        if name in EMPTY and value is None:
            continue
        sections["mapping" if name in STRUCTURE else "adapter"][name] = value
    config = from_dict(sections)
    return adapt_by(backbone, config.adapter, config.mapping, extractor, labels, input_size)


def adapt_by(
    backbone: nn.Module,
    adapter: AdapterConfig,
    mapping: MappingConfig,
    extractor: nn.Module | None = None,
    labels: Sequence[str] = (),
    input_size: tuple[int, int, int] | None = None,
    random_seed: int = 0,
) -> MetaLoRAModel:
    """Put adapters on a copy of a backbone, as settings describe. See `adapt`."""
    format = FORMATS.make(adapter.format)
    backbone = plain(backbone)
    extractor = None if extractor is None else plain(extractor, "extractor")
    saved = outermost(select(adapter.modules_to_save, _inner(backbone), "modules_to_save"))
    samples = _samples(input_size, backbone)
    uses = probe(copy_shared(backbone), samples)
    seeded = format.seed == "generated"
    names = find_targets(backbone, adapter.target_modules, adapter.exclude_modules, saved, uses, seeded)
    looked_at, condition_size = _conditions(backbone, extractor, mapping, uses, samples) if seeded else ((), 0)
    layers = {name: backbone.get_submodule(name) for name in names}
    spec = AdapterSpec(
        format=Choice.parse(FORMATS.full(format)),
        layers=_placements(layers, format, adapter, mapping, condition_size),
        modules_to_save=saved,
        seed_scope=mapping.seed_scope,
        mapping_depth=mapping.mapping_depth,
        mapping_width=mapping.mapping_width,
        extractor_features=mapping.extractor_features,
        extractor_layers=looked_at,
        condition_size=condition_size,
        labels=tuple(labels),
        feature_size=_width(copy_shared(backbone), samples, "the backbone") if labels else 0,
    )
    model = assemble(backbone, spec, extractor)
    initializer = INITIALIZERS.make(adapter.initializer)
    if initializer.needs == "nothing":  # else a training fills them, when it has measured what is needed
        fill_layers(model.layers, initializer, {}, random_seed)
    _check_reached(model, samples)
    return model


def _conditions(
    backbone: nn.Module,
    extractor: nn.Module | None,
    mapping: MappingConfig,
    uses: Uses,
    samples: Tensor,
) -> tuple[tuple[str, ...], int]:
    """Return the layers that the extractor looks at, and the number of its features."""
    source = copy_shared(backbone if extractor is None else extractor)
    looked_at = early_layers(source, (uses if extractor is None else probe(source, samples)).batched)
    return looked_at, _width(Extractor(source, mapping.extractor_features, looked_at), samples, "the extractor")


def _placements(
    layers: Mapping[str, nn.Module], format: Format, adapter: AdapterConfig, mapping: MappingConfig, condition_size: int
) -> dict[str, Placement]:
    """Return each layer's rank and alpha: as set, or as the parameter budget allows."""
    if adapter.parameter_budget is None:
        return place(list(layers), adapter.rank, adapter.alpha, adapter.rank_pattern, adapter.alpha_pattern)
    if adapter.rank_pattern:
        raise UserError("parameter_budget picks the ranks itself: leave out rank_pattern"
                        f"{given_as('parameter_budget', 'rank_pattern')}")  # fmt: skip

    def cost(ranks: Mapping[str, int]) -> int:
        shapes = {name: shape_of(layers[name], rank) for name, rank in ranks.items()}
        seeds = seed_layout(format, shapes, mapping.seed_scope)[1].numel()
        return mapping_size(condition_size, seeds, mapping.mapping_depth, mapping.mapping_width) if seeds else 0

    ranks = fit_ranks(layers, format, adapter.parameter_budget, cost)
    return place(list(layers), ranks, adapter.alpha, None, adapter.alpha_pattern)


@torch.no_grad()
def _check_reached(model: MetaLoRAModel, samples: Tensor) -> None:
    """Refuse adapters that the network passes by, as it does where a list of its own holds the layer too.

    Raises:
        UserError: a layer's adapter is never run.
    """
    missed = set(model.layers)
    mode = model.training
    with ExitStack() as hooks:
        for name, layer in model.layers.items():
            hooks.callback(
                layer.factors.down.register_forward_pre_hook(lambda *_, name=name: missed.discard(name)).remove
            )
        model.eval()(samples)
    model.train(mode)
    if missed:
        raise UserError(
            f"module {min(missed)!r} cannot be adapted: the network holds it in a plain list, dict or the like too and "
            "calls it from there, past the adapter (nn.ModuleList and nn.ModuleDict will do)"
        )


def assemble(backbone: nn.Module, spec: AdapterSpec, extractor: nn.Module | None = None) -> MetaLoRAModel:
    """Build the model that a spec describes, with fresh adapters, on a copy of a plain backbone and in its mode.

    Raises:
        UserError: the backbone lacks a module of the spec, or a module cannot take its rank.
    """
    spec.check(backbone, extractor)
    format = spec.make_format()
    identity_of_backbone = identify(backbone)
    backbone = copy.deepcopy(backbone).requires_grad_(False)
    frozen = mapping = None
    if format.seed == "generated":
        source = copy_shared(backbone) if extractor is None else copy.deepcopy(extractor).requires_grad_(False)
        frozen = Extractor(source, spec.extractor_features, spec.extractor_layers)
    slices, identity = seed_layout(format, spec.shapes(backbone), spec.seed_scope)
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
        getattr(backbone, "inputs", None),
    )
    reference = next(backbone.parameters())
    for part in (model.network.mapping, model.head):
        if part is not None:
            part.to(reference.device)
    return model.train(backbone.training)


def _width(network: nn.Module, samples: Tensor, what: str) -> int:
    """Return the width of a network's output for two samples."""
    output = attempt(network, samples, what)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        raise UserError(
            f"{what} must map images to (B, features), got {described(output)} for two images "
            "(a module around it may choose what it returns)"
        )
    return int(output.shape[1])


def _samples(input_size: Any, backbone: nn.Module) -> Tensor:
    """Return two samples to try a backbone with: images of the given or its own size, or examples of its inputs."""
    size = input_size or getattr(backbone, "input_size", None)
    inputs = getattr(backbone, "inputs", None)
    if size is None and inputs is not None:
        device = next((tensor.device for tensor in backbone.parameters()), None)
        prepared: Tensor = inputs.prepare(inputs.example(2).to(device))
        return prepared
    size = size or (3, 224, 224)
    if not isinstance(size, Sequence) or len(size) != 3 or any(not isinstance(n, int) or n < 1 for n in size):
        raise UserError(f"input_size must be (channels, height, width) of an image, got {size!r}")
    return noise(backbone, (size[0], size[1], size[2]))


def _inner(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_modules() if name]
