"""Putting a backbone, its adapters, the mapping net and the extractor together."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from metalora.adapters.budget import fit_ranks
from metalora.adapters.formats import build_format
from metalora.adapters.inject import Placement, check_placements, find_targets, inject, place, replace
from metalora.adapters.layer import AdaptedLayer
from metalora.adapters.patterns import select
from metalora.adapters.probe import attempt, empty_images, probe
from metalora.adapters.seed_slot import Call, SeedSlot
from metalora.errors import UserError
from metalora.limits import limits
from metalora.models.extractor import FEATURES, Extractor, early_layers
from metalora.models.mapping import SCOPES, MappingNet, mapping_size, seed_layout
from metalora.models.network import AdaptedNetwork
from metalora.models.plain import copy_shared, described, identify, plain
from metalora.reading import short
from metalora.registry import nearest
from metalora.tensor_files import check_like


@dataclass(frozen=True)
class AdapterSpec:
    """Everything that, with the backbone and the extractor, rebuilds a `MetaLoRAModel`'s structure.

    All names are plain ones: patterns are for `adapt`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: str
    branches: int
    layers: Mapping[str, Placement]
    modules_to_save: tuple[str, ...]
    seed_scope: str
    mapping_depth: int
    mapping_width: int
    extractor_features: str
    extractor_layers: tuple[str, ...]
    condition_size: int
    labels: tuple[str, ...]
    feature_size: int

    def check(self, backbone: nn.Module, extractor: nn.Module | None) -> None:
        """Check that it makes sense, on these networks, before anything is made by it.

        Raises:
            UserError: an unknown choice, a number out of `limits`, a module that is not there, or is named twice.
        """
        seeded = build_format(self.format, 1).seed == "generated"
        _check_settings(self.branches, self.extractor_features, self.seed_scope, self.mapping_depth, self.mapping_width)
        _check_size("labels", len(self.labels), 0, limits().width)
        _check_size("condition_size", self.condition_size, int(seeded), limits().width)
        _check_size("feature_size", self.feature_size, int(bool(self.labels)), limits().width)
        if not self.layers:
            raise UserError("layers: there are none; wanted: one or more")
        check_placements(backbone, self.layers)
        modules = {name for name, _ in backbone.named_modules() if name}
        looked_at = {name for name, _ in (extractor or backbone).named_modules() if name}
        for setting, names, there in (
            ("modules_to_save", self.modules_to_save, modules),
            ("extractor_layers", self.extractor_layers, looked_at),
        ):
            unknown = [name for name in names if name not in there]
            if unknown:
                raise UserError(f"{setting}: the network has no module {short(unknown[0])}")
            if len(set(names)) < len(names):
                raise UserError(f"{setting}: a module is named twice: {short(names)}")
        inside = set(self.modules_to_save) - set(_outermost(self.modules_to_save))
        inside |= {name for name in self.layers if any(f"{name}.".startswith(f"{m}.") for m in self.modules_to_save)}
        if inside:
            raise UserError(f"modules_to_save: {short(min(inside))} is within another module that is saved as a whole")


class MetaLoRAModel(nn.Module):
    """A frozen backbone whose adapters are seeded by the image. Made by `adapt` or `metalora.load`.

    Attributes:
        network: Adapted backbone and mapping net.
        extractor: The frozen feature extractor; None for formats without generated seeds.
        head: A linear classifier of the features, if labels were given.
        layers: The adapted layers by their name in the backbone.
        spec: The structure.
        backbone_identity: Name, weights and hash of the backbone.
        extractor_identity: Likewise; None if the extractor is the backbone.
    """

    def __init__(
        self,
        network: AdaptedNetwork,
        extractor: Extractor | None,
        head: nn.Linear | None,
        layers: dict[str, AdaptedLayer],
        spec: AdapterSpec,
        backbone_identity: dict[str, Any],
        extractor_identity: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.backbone_identity = backbone_identity
        self.extractor_identity = extractor_identity
        self.network = network
        self.extractor = extractor
        self.head = head
        self.layers = layers
        self.spec = spec

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Any:
        """Return what the backbone returns for images, adapted.

        Args:
            x: Images, (B, 3, H, W).
            condition: Extractor features (B, F), if they are known already.
        """
        if self.extractor is not None and condition is None and self._seeded():
            condition = self.extractor(x)
        return self.network(x, condition)

    def logits(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the head's scores, (B, labels).

        Raises:
            UserError: the model was made without labels.
        """
        if self.head is None:
            raise UserError("this model has no classifier head: make it with labels=[...]")
        scores: Tensor = self.head(self(x, condition).to(self.head.weight.dtype))
        return scores

    def seed(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the generated seeds, (B, S), of images.

        Raises:
            UserError: the format generates none.
        """
        if self.network.mapping is None or self.extractor is None:
            raise UserError(f"format {self.spec.format!r} generates no seeds")
        seeds: Tensor = self.network.mapping(condition if condition is not None else self.extractor(x))
        return seeds

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name: the one declaration behind freezing, counting, saving, optimizing."""
        named = {
            f"layers.{name}.{part}": parameter
            for name, layer in self.layers.items()
            for part, parameter in layer.adapter_parameters()
        }
        for prefix, module in self._whole_modules().items():
            named.update({f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()})
        return named

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the tensors an adapter file holds: `trainable`, and the buffers of modules trained in full."""
        state: dict[str, Tensor] = {name: parameter.detach() for name, parameter in self.trainable().items()}
        for prefix, module in self._whole_modules().items():
            state.update({f"{prefix}.{name}": buffer for name, buffer in module.named_buffers()})
        return state

    def check_adapter_state(self, state: Mapping[str, Tensor], exact: bool = False) -> None:
        """Check that `load_adapter_state` can take tensors.

        Args:
            state: The tensors.
            exact: Whether floats of another precision are refused too.

        Raises:
            UserError: a tensor is missing, extra, or of another shape or type.
        """
        own = self.adapter_state()
        for name in sorted(own.keys() | state.keys()):
            if name not in state:
                raise UserError(f"tensor {name!r} is missing")
            if name not in own:
                raise UserError(f"tensor {short(name)} is not part of this model")
            check_like(state[name], own[name], name, exact)

    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors of `adapter_state`; see `check_adapter_state` for what is refused."""
        self.check_adapter_state(state)
        with torch.no_grad():
            for name, tensor in self.adapter_state().items():
                tensor.copy_(state[name])

    def count_parameters(self) -> tuple[int, int]:
        """Return (trained, all) parameters; the extractor counts only where it is not the backbone itself."""
        trained = sum(parameter.numel() for parameter in self.trainable().values())
        return trained, sum(parameter.numel() for parameter in self.parameters())

    def print_trainable_parameters(self) -> None:
        """Print trained and all parameters, as PEFT does."""
        trained, total = self.count_parameters()
        print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}")

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Switch the adapters off within the block and in this thread: the model is its backbone.

        Raises:
            UserError: the adapters are merged.
        """
        if any(layer.merged for layer in self.layers.values()):
            raise UserError("the adapter is merged: unmerge it before switching it off")
        with self.network.slot.within(Call(enabled=False)):
            yield

    def merge(self, seed: Tensor | None = None) -> None:
        """Add every layer's update to its frozen weight.

        Args:
            seed: (S,), for formats with generated seeds: ``model.seed(images).mean(0)``, say.

        Raises:
            UserError: merged already, or a seed is needed or has another size.
        """
        size = 0 if self.network.mapping is None else self.network.mapping.heads.out_features
        if size and (seed is None or seed.numel() != size):
            met = "none" if seed is None else f"one of shape {tuple(seed.shape)}"
            raise UserError(
                f"merging format {self.spec.format!r} needs one seed of {size} elements, "
                f"e.g. model.seed(images).mean(0); got {met}"
            )
        self.network.unfuse()  # what is fused does not ask whether layers are merged
        for layer in self.layers.values():
            layer.merge(seed)

    def unmerge(self) -> None:
        """Put the frozen weights back, bit for bit."""
        for layer in self.layers.values():
            layer.unmerge()

    def merge_and_unload(self, seed: Tensor | None = None) -> nn.Module:
        """Merge, and return the backbone as a plain network without adapters."""
        self.merge(seed)
        backbone = self.network.backbone
        replace(backbone, {layer: layer.base for layer in self.layers.values()})
        return backbone

    def _seeded(self) -> bool:
        """Tell whether the layers will read seeds: not while they are off or merged."""
        merged = any(layer.merged for layer in self.layers.values())
        return self.network.slot.enabled and not merged

    def _whole_modules(self) -> dict[str, nn.Module]:
        whole: dict[str, nn.Module] = {f"saved.{name}": module for name, module in self.network.saved.items()}
        if self.network.mapping is not None:
            whole["mapping"] = self.network.mapping
        if self.head is not None:
            whole["head"] = self.head
        return whole


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


def _check_settings(branches: int, features: str, scope: str, depth: int, width: int) -> None:
    for name, value, choices in (
        ("extractor_features", features, FEATURES),
        ("seed_scope", scope, SCOPES),
    ):
        if value not in choices:
            raise UserError(f"unknown {name} {short(value)}{nearest(value, choices)} (choices: {', '.join(choices)})")
    for name, number, most in (
        ("branches", branches, limits().width),
        ("mapping_depth", depth, limits().depth),
        ("mapping_width", width, limits().width),
    ):
        _check_size(name, number, 1, most)


def _check_size(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise UserError(f"{name} must be {least} to {most}, got {short(number)}")


def _outermost(names: Sequence[str]) -> tuple[str, ...]:
    """Leave out modules that are inside others of them."""
    return tuple(name for name in names if not any(name.startswith(f"{whole}.") for whole in names))


def _several(patterns: Sequence[str] | str) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
