"""The structure of a model, from which it can be rebuilt with its networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ConfigDict
from torch import nn

from metalora.adapters.formats import FORMATS, Format, Shape
from metalora.adapters.inject import Placement, check_placements
from metalora.adapters.support import shape_of
from metalora.errors import UserError, given_as
from metalora.limits import limits
from metalora.models.extractor import FEATURES
from metalora.models.mapping import SCOPES
from metalora.reading import short
from metalora.registry import Method, nearest


@dataclass(frozen=True)
class AdapterSpec:
    """The structure of a `MetaLoRAModel`; with the backbone and the extractor it can be rebuilt.

    All names are plain names; only `adapt` takes patterns.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Method
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

    def make_format(self) -> Format:
        """Make the format with its options.

        Raises:
            UserError: the format or an option is unknown.
        """
        return FORMATS.make(self.format)

    def shapes(self, backbone: nn.Module) -> dict[str, Shape]:
        """Return the sizes of the adapted layers, by name, for a backbone without adapters."""
        return {name: shape_of(backbone.get_submodule(name), placed.rank) for name, placed in self.layers.items()}

    def check(self, backbone: nn.Module, extractor: nn.Module | None) -> None:
        """Check that the spec fits these networks, before a model is made.

        Raises:
            UserError: a choice is unknown, a number exceeds `limits`, or a module does not exist or is named twice.
        """
        seeded = self.make_format().seed == "generated"
        _check_settings(self.extractor_features, self.seed_scope, self.mapping_depth, self.mapping_width)
        _check_size("labels", len(self.labels), 0, limits().width)
        _check_size("condition_size", self.condition_size, int(seeded), limits().width)
        _check_size("feature_size", self.feature_size, int(bool(self.labels)), limits().width)
        if not self.layers:
            raise UserError("layers: there are none; wanted: one or more")
        check_placements(backbone, self.layers)
        modules = {name for name, _ in backbone.named_modules() if name}
        looked_at = {name for name, _ in (extractor or backbone).named_modules() if name}
        for setting, names, there, given in (
            ("modules_to_save", self.modules_to_save, modules, given_as("modules_to_save")),
            ("extractor_layers", self.extractor_layers, looked_at, ""),  # no setting: a file has them
        ):
            unknown = [name for name in names if name not in there]
            if unknown:
                raise UserError(f"{setting}: the network has no module {short(unknown[0])}{given}")
            if len(set(names)) < len(names):
                raise UserError(f"{setting}: a module is named twice: {short(names)}")
        inside = set(self.modules_to_save) - set(outermost(self.modules_to_save))
        inside |= {name for name in self.layers if any(f"{name}.".startswith(f"{m}.") for m in self.modules_to_save)}
        if inside:
            raise UserError(f"modules_to_save: {short(min(inside))} is within another module that is saved as a whole"
                            f"{given_as('modules_to_save')}")  # fmt: skip


def _check_settings(features: str, scope: str, depth: int, width: int) -> None:
    for name, value, choices in (
        ("extractor_features", features, FEATURES),
        ("seed_scope", scope, SCOPES),
    ):
        if value not in choices:
            raise UserError(f"unknown {name} {short(value)}{nearest(value, choices)} (choices: {', '.join(choices)})")
    for name, number, most in (
        ("mapping_depth", depth, limits().depth),
        ("mapping_width", width, limits().width),
    ):
        _check_size(name, number, 1, most)


def _check_size(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise UserError(f"{name} must be {least} to {most}, got {short(number)}")


def outermost(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the modules that are not inside another of them."""
    return tuple(name for name in names if not any(name.startswith(f"{whole}.") for whole in names))
