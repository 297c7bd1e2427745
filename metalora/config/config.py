"""Every setting, in frozen dataclasses that are checked when made and never mutated.

A setting's name is unique over all sections, so that on the command line ``--rank 8`` is
``adapter.rank`` of the YAML file. Precedence, lowest first: defaults, ``--config`` file, command line.
Only builders (`metalora.build`, `pipelines`) read these; the modules they build take plain arguments.
A relative path becomes absolute when a config is made, so where the user stands: workers stand elsewhere.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from metalora.config.sections import (
    _STRICT,
    PLACES,
    AdapterConfig,
    BackboneConfig,
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    MappingConfig,
    TrackingConfig,
    TrainConfig,
)
from metalora.errors import UserError
from metalora.reading import check_form, describe_error, gate, short
from metalora.redact import is_redacted, redact_settings
from metalora.registry import nearest


@dataclass(frozen=True, config=_STRICT)
class Config:
    """All sections. `Config()` is the embedded default."""

    backbone: BackboneConfig = Field(default_factory=BackboneConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    mapping: MappingConfig = Field(default_factory=MappingConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        pieces = max(1, self.cluster.workers) * self.train.accumulate
        if self.data.batch_size % pieces:
            raise ValueError(f"batch_size {self.data.batch_size} must be a multiple of workers x accumulate = {pieces}")
        if self.data.val_fraction + self.data.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must leave images to train on, so be below 1")
        if self.train.kernel == "fused" and self.train.activation_checkpointing:
            raise ValueError(
                "kernel fused does not go with activation_checkpointing: what is recomputed are the network's own "
                "blocks, and a fused training does not run these"
            )
        if self.train.cuda_graph and self.graph_obstacles:
            raise ValueError(f"cuda_graph does not go with {', '.join(self.graph_obstacles)}")
        both = sorted(set(self.data.exclude_domains) & set(self.data.holdout_domains))
        if both:
            raise ValueError(f"domains are left out or held out, not both: {', '.join(both)}")

    @property
    def graph_obstacles(self) -> list[str]:
        """The settings with which a step cannot be replayed as CUDA graphs."""
        obstacles = {
            "accumulate > 1": self.train.accumulate > 1,
            "activation_checkpointing": self.train.activation_checkpointing,
            "seed_granularity task": self.mapping.seed_granularity == "task",
        }
        return [name for name, met in obstacles.items() if met]


SECTIONS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Config)}
# section, or what else files hold -> {name in files of older code: today's name}
RENAMED: dict[str, dict[str, str]] = {
    "train": {"seed": "random_seed"},
    "campaign": {"seeds": "repeats"},
    "table": {"tuning_seeds": "tuning_repeats", "fresh_seeds": "fresh_repeats"},
    "trial": {"seed": "random_seed"},
}


def setting_sections() -> dict[str, str]:
    """Map each setting's name to its section."""
    return {
        field.name: section for section, section_type in SECTIONS.items() for field in dataclasses.fields(section_type)
    }


def current_names(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of one section under today's names: files of older code have others.

    Raises:
        UserError: a setting under its old and its new name.
    """
    renamed = RENAMED.get(section, {})
    for old in renamed.keys() & settings.keys():
        if renamed[old] in settings:
            raise UserError(f"{section}.{old} is now called {section}.{renamed[old]}: give it under that name only")
    return {renamed.get(name, name): value for name, value in settings.items()}


def current_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{section: {setting: value}}`` under today's names; see `current_names`."""
    return {
        section: current_names(section, settings) if isinstance(settings, Mapping) else settings
        for section, settings in values.items()
    }


def place_settings() -> Iterator[tuple[str, str]]:
    """Yield section and name of every setting that may be a path."""
    for section, kind in SECTIONS.items():
        for field in dataclasses.fields(kind):
            if {field.type, *get_args(field.type)} & set(PLACES):
                yield section, field.name


def from_dict(values: Mapping[str, Any]) -> Config:
    """Make a checked `Config` from ``{section: {setting: value}}``; what is missing takes its default.

    Raises:
        UserError: an unknown section or setting (the nearest valid name is given), or a value that
            is not accepted.
    """
    values = current_sections(values)
    _check_names(values)
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        raise UserError("; ".join(describe_error(e) for e in error.errors())) from None


def _check_names(values: Mapping[str, Any]) -> None:
    known = setting_sections()
    for section, settings in values.items():
        if section not in SECTIONS:
            hint = f", it belongs in section {known[section]!r}" if section in known else nearest(section, SECTIONS)
            raise UserError(f"unknown section {short(section)}{hint} (sections: {', '.join(SECTIONS)})")
        if not isinstance(settings, Mapping):
            raise UserError(f"section {section!r} must hold settings, got {short(settings)}")
        names = [field.name for field in dataclasses.fields(SECTIONS[section])]
        for name in settings:
            if name not in names:
                hint = f", it belongs in section {known[name]!r}" if name in known else nearest(name, known)
                raise UserError(f"unknown setting {section}.{name[:80]}{hint}")


def check_file(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Check the settings of a file each by itself, so that an error names the file; `from_dict` checks the rest.

    Args:
        values: ``{section: {setting: value}}``. Values that were recorded without their secrets are left out, since
            they must be given anew.
        what: What error messages call the file.

    Returns:
        All of them, under today's names.

    Raises:
        UserError: an unknown section or setting, or a value that is not accepted.
    """
    with gate(what):
        values = current_sections(values)
        _check_names(values)
    for section, settings in values.items():
        known = {n: value for n, value in settings.items() if not (isinstance(value, str) and is_redacted(value))}
        kind: Any = SECTIONS[section]
        check_form({section: known}, dict[str, kind], what)
    return values


def to_dict(config: Config) -> dict[str, Any]:
    """Return ``{section: {setting: value}}`` of plain values; `from_dict` inverts it."""
    plain: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return plain


def to_yaml(config: Config) -> str:
    """Return the config as the YAML text that ``--config`` reads, without the secrets of its URIs."""
    return yaml.safe_dump(redact_settings(to_dict(config)), sort_keys=False)
