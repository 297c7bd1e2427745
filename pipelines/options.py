"""Settings on the command line; their precedence is defaults < ``--config`` file < command line."""

import argparse
import dataclasses
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from metalora.config import (
    RENAMED,
    SECTIONS,
    Config,
    check_file,
    current_sections,
    describe_settings,
    from_dict,
    put,
)
from metalora.errors import UserError, option
from metalora.methods import check_methods
from metalora.missing import is_missing, no_such_path
from metalora.places import expanded
from metalora.reading import config_name, gate, read_yaml
from metalora.registry import KINDS, Choice, nearest

SHORT_FORMS = {"random_seed": ("--seed",)}


def add_settings(parser: argparse.ArgumentParser, names: Collection[str] | None = None) -> None:
    """Add an option for every setting of `Config`: ``--batch-size`` for ``data.batch_size``.

    Args:
        parser: Parser of the command.
        names: The sections and settings that the command reads; None: all.
    """
    for section, kind in SECTIONS.items():
        add_section(parser, section, kind, None if names is None or section in names else names)


def add_section(parser: argparse.ArgumentParser, title: str, kind: Any, only: Collection[str] | None = None) -> None:
    """Add an option for every setting of one dataclass; old names of options are accepted, but not shown.

    Args:
        parser: Parser of the command.
        title: Name of the section.
        kind: The dataclass.
        only: The settings that get an option; None: all.
    """
    group = parser.add_argument_group(f"{title} settings")
    defaults = plain(kind())
    former: dict[str, list[str]] = {}
    for old, name in RENAMED.get(title, {}).items():
        former.setdefault(name, []).extend([old] * (option(old) not in SHORT_FORMS.get(name, ())))
    for field in dataclasses.fields(kind):
        name = field.name
        if only is not None and name not in only:
            continue
        default = defaults[name]
        shown = ", ".join(map(str, default)) if isinstance(default, list) else default
        help = getattr(field.default, "description", None) or ""
        if "default:" not in help and shown not in (None, "", {}):
            help += f" (default: {shown})"
        names = [option(name), *SHORT_FORMS.get(name, ())]
        if name in KINDS:
            help += f"; {', '.join(KINDS[name])} (metalora methods {name} says more)"
        group.add_argument(*names, dest=name, help=help.replace("%", "%%"), **_form(name, field.type))
        if name in KINDS:
            _add_method_options(group, name)
        for old in former.get(name, ()):
            group.add_argument(option(old), dest=name, help=argparse.SUPPRESS, **_form(name, field.type))


def _add_method_options(group: Any, setting: str) -> None:
    """Add an option for every option of the methods of a kind: ``--format.branches``, ``--callbacks.NAME.OPTION``."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for method in KINDS[setting]:
        for name, field in KINDS[setting].options(method).items():
            found.setdefault(KINDS[setting].path(method, name), []).append((method, field))
    for path, owners in found.items():
        field = owners[0][1]
        help = getattr(field.default, "description", None) or ""
        of = ", ".join(f"{owner} (default: {getattr(f.default, 'default', f.default)})" for owner, f in owners)
        form = _form(path.rpartition(".")[2], field.type)
        if form.get("action") is argparse.BooleanOptionalAction:  # its name has no place for no-
            form = {"default": argparse.SUPPRESS, "metavar": "{true,false}"}
        group.add_argument(option(path), dest=path, help=f"{help}; of {of}".replace("%", "%%"), **form)


def plain(settings: Any) -> dict[str, Any]:
    """Return the settings of a dataclass as plain values."""
    values: dict[str, Any] = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    return values


def settings_of(kind: Any, values: Mapping[str, Any], title: str) -> Any:
    """Make a dataclass from settings, and check them.

    Raises:
        UserError: a setting is unknown (the message gives the nearest one), or a value is not accepted.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in names:
            raise UserError(f"unknown {title} setting {name!r}{nearest(name, names)}")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(describe_settings(error, 0)) from None


def _form(name: str, kind: Any) -> dict[str, Any]:
    """Say how argparse reads a setting; the values themselves are checked by `Config`."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    origin = get_origin(kind)
    if kind in (bool, bool | None):
        return {"action": argparse.BooleanOptionalAction, "default": argparse.SUPPRESS}
    base: dict[str, Any] = {"default": argparse.SUPPRESS, "metavar": _word(name, kind)}
    if origin is Literal:
        return {**base, "metavar": f"{{{','.join(get_args(kind))}}}"}
    if origin is tuple:
        return {**base, "nargs": "*"}
    if origin is dict:
        return {**base, "nargs": "*", "metavar": "PATTERN=VALUE"}
    return base


def _word(name: str, kind: Any) -> str:
    """Return the word for the value of a setting in the help text."""
    parts = {part for part in (kind, *get_args(kind)) for part in (part, *get_args(part))}
    numbers = {int: "N", float: "X", Choice: "NAME"}
    return next((word for part, word in numbers.items() if part in parts), name.rpartition("_")[2].upper())


def resolve(
    options: argparse.Namespace, base: Mapping[str, Any] | None = None, file: Mapping[str, Any] | None = None
) -> Config:
    """Make the config from a parsed command line.

    Args:
        options: The result of `parse`; ``options.config`` is the path of a YAML file, or None.
        base: Settings that the file overrides (those of a run that is resumed).
        file: Content of the file, if it has been read already.

    Raises:
        UserError: a file that cannot be read, or a setting that is not accepted.
    """
    values: dict[str, dict[str, Any]] = {section: dict(given) for section, given in (base or {}).items()}
    for section, settings in (config_file(options) if file is None else file).items():
        if isinstance(settings, Mapping):
            values.setdefault(section, {}).update(settings)
        else:
            values[section] = settings  # `from_dict` says what is wrong with it
    for section, kind in SECTIONS.items():
        if isinstance(values.get(section, {}), dict):
            for name, value in given(kind, options).items():
                put(section, values.setdefault(section, {}), name, value)
    return check_methods(from_dict(values))


def resolve_section(options: argparse.Namespace, section: str) -> Any:
    """Make one section of the config from a parsed command line, for example to find a run before it is resumed.

    Raises:
        UserError: a file that cannot be read, or a setting that is not accepted.
    """
    kind = SECTIONS[section]
    settings = dict(config_file(options).get(section, {}))
    return settings_of(kind, {**settings, **given(kind, options)}, section)


def config_file(options: argparse.Namespace) -> dict[str, Any]:
    """Read the sections of the file that ``--config`` names.

    Raises:
        UserError: the file cannot be read.
    """
    if not options.config:
        return {}
    what = config_name(options.config)
    if is_missing(options.config):
        raise UserError(f"{no_such_path(options.config, 'config file')} (--config)")
    with gate(what):
        content = current_sections(read_yaml(expanded(options.config)), asked=True)
    settings = {section: values for section, values in content.items() if section != "campaign"}  # `tune` takes that
    check_file(settings, what)
    return content


def given(kind: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a dataclass that are given on the command line.

    Raises:
        UserError: a mapping is not written as PATTERN=VALUE.
    """
    forms = {field.name: field.type for field in dataclasses.fields(kind)}
    found = {name: _value(name, form, getattr(options, name)) for name, form in forms.items() if hasattr(options, name)}
    paths = [path for path in vars(options) if "." in path and path.partition(".")[0] in forms]
    return {**found, **{path: getattr(options, path) for path in paths}}


def _value(name: str, form: Any, value: Any) -> Any:
    if get_origin(form) is dict:
        pairs = [item.rpartition("=") for item in value]
        if any(not pattern for pattern, _, _ in pairs):
            raise UserError(f"{option(name)} takes PATTERN=VALUE, got {' '.join(value)!r}")
        return {pattern: number for pattern, _, number in pairs}
    if type(None) in get_args(form) and value in ("none", "null"):
        return None
    return value
