"""Every setting, in frozen dataclasses that are checked when they are made and never changed.

A setting's name is unique over all sections, so that on the command line ``--rank 8`` is
``adapter.rank`` of the YAML file. Precedence, lowest first: defaults, ``--config`` file, command line.
Only builders (`metalora.build`, `pipelines`) read these; the modules they build take plain arguments.
A relative path becomes absolute when a config is made, in the user's working directory: workers have another one.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from metalora.config.facts import facts_of
from metalora.config.older import current_sections
from metalora.config.run_sections import ClusterConfig, EvaluateConfig, TrackingConfig, TrainConfig
from metalora.config.sections import PLACES, AdapterConfig, BackboneConfig, DataConfig, MappingConfig
from metalora.errors import UserError, given_as
from metalora.reading import check_form, describe_error, gate, short
from metalora.redact import is_redacted, redact_settings
from metalora.registry import KINDS, STRICT, Choice, Method, Methods, listed, nearest


@dataclass(frozen=True, config=STRICT)
class Config:
    """All settings, one attribute per section. `Config()` has the defaults, with the embedded data.

    >>> Config().adapter.rank
    4
    """

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
            raise ValueError(
                f"batch_size {self.data.batch_size} must be a multiple of workers x accumulate = {pieces}"
                f"{given_as('batch_size', 'workers', 'accumulate')}"
            )
        if self.data.val_fraction + self.data.test_fraction >= 1:
            raise ValueError(
                "val_fraction + test_fraction must be below 1, to leave images to train on"
                f"{given_as('val_fraction', 'test_fraction')}"
            )
        if self.train.kernel == "fused" and self.train.activation_checkpointing:
            raise ValueError(
                "kernel fused cannot be combined with activation_checkpointing: it recomputes the network's own "
                f"blocks, and a fused training does not run these{given_as('kernel', 'activation_checkpointing')}"
            )
        if self.train.cuda_graph and self.graph_obstacles:
            raise ValueError(
                f"cuda_graph cannot be combined with {', '.join(self.graph_obstacles)}"
                f"{given_as('cuda_graph', *(one.partition(' ')[0] for one in self.graph_obstacles))}"
            )
        if not self.evaluate.validate_every and (self.train.keep == "best" or self.train.patience is not None):
            raise ValueError(
                "keep best and patience go by validations: validate_every must not be 0"
                f"{given_as('keep', 'patience', 'validate_every')}"
            )
        if self.data.class_sampling == self.train.class_weights == "balanced":
            raise ValueError(
                "class_sampling balanced and class_weights balanced do the same: choose one of them"
                f"{given_as('class_sampling', 'class_weights')}"
            )
        both = sorted(set(self.data.exclude_domains) & set(self.data.holdout_domains))
        if both:
            raise ValueError(
                f"domains are left out or held out, not both: {', '.join(both)}"
                f"{given_as('exclude_domains', 'holdout_domains')}"
            )

    @property
    def graph_obstacles(self) -> list[str]:
        """The settings with which a step cannot be replayed as CUDA graphs."""
        obstacles = []
        for section in dataclasses.fields(self):
            settings = getattr(self, section.name)
            for field in dataclasses.fields(settings):
                value = getattr(settings, field.name)
                if facts_of(field).forbids_graph(value):
                    obstacles.append(field.name if value is True else f"{field.name} {value}")
        return obstacles


SECTIONS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Config)}


def setting_sections() -> dict[str, str]:
    """Return the section of each setting, by the setting's name."""
    return {
        field.name: section for section, section_type in SECTIONS.items() for field in dataclasses.fields(section_type)
    }


def methods_in(section: str) -> dict[str, Any]:
    """Return the settings of a section that name methods, with their defaults: a `Choice`, or a tuple of them."""
    return {
        field.name: getattr(field.default, "default", None)
        for field in dataclasses.fields(SECTIONS[section])
        if field.type in (Method, Methods)
    }


def put(section: str, settings: dict[str, Any], name: str, value: Any) -> None:
    """Set one setting of a section, in place.

    ``format.branches`` sets an option of the method that ``format`` names; ``callbacks.NAME.option`` sets one of a
    method in a list. Naming the same method again keeps its options; naming another method drops them.

    Raises:
        UserError: the option's setting names no method, or its method is not in the list.
    """
    base, *path = name.split(".")
    methods = methods_in(section)
    if base not in methods:
        if path:
            raise UserError(f"setting {base!r} names no method, so {name!r} is no option of one")
        settings[base] = value
        return
    with gate(f"{section}.{base}{given_as(base)}"):
        now = settings.get(base, methods[base])
        if isinstance(methods[base], tuple):
            settings[base] = _put_in_list([Choice.parse(one) for one in listed(now)], name, path, value)
            return
        choice = Choice.parse(now)
        if path:
            settings[base] = Choice(choice.name, {**choice.options, ".".join(path): value}).plain()
        elif isinstance(value, str) and value == choice.name:
            settings[base] = choice.plain()
        else:
            settings[base] = value


def _put_in_list(now: Sequence[Choice], name: str, path: Sequence[str], value: Any) -> list[Any]:
    """Return a list of methods with one option set, or replaced; see `put`."""
    known = {choice.name: choice for choice in now}
    if not path:
        return [known.get(one, Choice(one)).plain() if isinstance(one, str) else one for one in listed(value)]
    if path[0] not in known or len(path) != 2:
        raise UserError(f"{name}: {path[0]!r} is not in the list ({', '.join(known) or 'which is empty'})")
    known[path[0]] = Choice(path[0], {**known[path[0]].options, path[1]: value})
    return [choice.plain() for choice in known.values()]


def spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{section: {setting: value}}`` with all options of its methods, as it is recorded and compared.

    Raises:
        UserError: a method or an option is unknown.
    """
    return {
        section: {name: KINDS[name].spelled_out(v) if name in KINDS else v for name, v in settings.items()}
        for section, settings in values.items()
    }


def searchable_settings() -> set[str]:
    """Return the settings in which the trials of a campaign may differ."""
    return {f.name for kind in SECTIONS.values() for f in dataclasses.fields(kind) if facts_of(f).searched}


def settings_meant(word: str) -> list[str]:
    """Return the settings, and options of methods (``optimizer.weight_decay``), that people call by this word."""
    fields = [field for kind in SECTIONS.values() for field in dataclasses.fields(kind)]
    meant = [field.name for field in fields if word in facts_of(field).words]
    for kind in KINDS.values():
        for method in kind:
            options = kind.options(method).items()
            meant += [kind.path(method, name) for name, field in options if word in (name, *facts_of(field).words)]
    return list(dict.fromkeys(meant))


def nearest_setting(name: str, names: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"``, also for other libraries' names of a setting; empty if nothing is near."""
    meant = [repr(one) for one in settings_meant(name) if one.partition(".")[0] in names]
    return f", did you mean {' or '.join(meant)}?" if meant else nearest(name, names)


def place_settings() -> Iterator[tuple[str, str]]:
    """Yield the section and the name of every setting that may be a path."""
    for section, kind in SECTIONS.items():
        for field in dataclasses.fields(kind):
            if {field.type, *get_args(field.type)} & set(PLACES):
                yield section, field.name


def from_dict(values: Mapping[str, Any]) -> Config:
    """Make a checked `Config` from ``{section: {setting: value}}``; missing settings take their defaults.

    >>> from_dict({"adapter": {"format": "cp", "rank": 8}}).adapter.rank
    8

    Raises:
        UserError: an unknown section or setting (the nearest valid name is given), or a value that
            is not accepted.
    """
    values = current_sections(values)
    _check_names(values)
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        raise UserError(describe_settings(error, 1)) from None


def describe_settings(error: ValidationError, depth: int) -> str:
    """Return what pydantic found in settings as one line: the first error of each setting, and its option.

    Args:
        error: The error.
        depth: Number of names before the setting's: 1 in all settings, 0 in one section.
    """
    first: dict[tuple[Any, ...], str] = {}
    for one in error.errors():
        named = map(str, one["loc"][depth : depth + 1])
        first.setdefault(one["loc"][: depth + 1], "".join([describe_error(one), *map(given_as, named)]))
    return "; ".join(first.values())


def _check_names(values: Mapping[str, Any]) -> None:
    known = setting_sections()
    for section, settings in values.items():
        if section not in SECTIONS:
            hint = _place(str(section), known) or nearest(str(section), SECTIONS)
            raise UserError(f"unknown section {short(section)}{hint} (sections: {', '.join(SECTIONS)})")
        if not isinstance(settings, Mapping):
            raise UserError(f"section {section!r} must hold settings, got {short(settings)}")
        names = [field.name for field in dataclasses.fields(SECTIONS[section])]
        for name in settings:
            if name not in names:
                hint = _place(name, known) or nearest_setting(name, known)
                raise UserError(f"unknown setting {section}.{name[:80]}{hint}")


def _place(name: str, known: Mapping[str, str]) -> str:
    """Return where the setting of a name, or of another library's word for it, stands in a file; empty if unknown."""
    base, _, option = name.partition(".")
    if base in KINDS and option:
        return f", it is written {base}: {{name: NAME, {option}: VALUE}} in section {known[base]!r}"
    if name in known:
        return f", it belongs in section {known[name]!r}"
    meant = [f"{_written(one)} in section {known[one.partition('.')[0]]!r}" for one in settings_meant(name)]
    return f", did you mean {' or '.join(meant)}?" if meant else ""


def _written(name: str) -> str:
    """Return a setting, or an option of a method, as it is written in a file."""
    setting, _, path = name.partition(".")
    method, _, option = path.rpartition(".")
    return f"{setting}: {{name: {method or 'NAME'}, {option}: VALUE}}" if path else repr(name)


def check_file(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Check each setting of a file by itself, so that an error names the file; `from_dict` checks the rest.

    Args:
        values: ``{section: {setting: value}}``. Values that were recorded without their secrets are not checked, since
            they must be given again.
        what: Name of the file in error messages.

    Returns:
        All settings, under today's names.

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
        with gate(what):
            spelled_out({section: known})
    return values


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as ``{section: {setting: value}}`` of plain values; `from_dict` reads it."""
    plain: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return plain


def to_yaml(config: Config) -> str:
    """Return the config as the YAML text that ``--config`` reads, without the secrets of its URIs."""
    return yaml.safe_dump(redact_settings(to_dict(config)), sort_keys=False)
