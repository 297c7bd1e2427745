"""Settings on the command line; their precedence is defaults < ``--config`` file < command line."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from metalora.config import (
    RENAMED,
    SECTIONS,
    Config,
    check_file,
    current_sections,
    from_dict,
    now_options,
    put,
    settings_by_word,
)
from metalora.errors import UserError
from metalora.methods import check_methods
from metalora.places import expanded
from metalora.reading import config_name, describe_error, gate, read_yaml, short
from metalora.registry import KINDS, nearest

SHORT_FORMS = {"random_seed": ("--seed",)}


def option(name: str) -> str:
    """Return the command-line option of a setting: ``--batch-size`` for ``batch_size``."""
    return f"--{name.replace('_', '-')}"


class _Parser(argparse.ArgumentParser):
    gone: Mapping[str, str]

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option for every setting of `Config`: ``--batch-size`` for ``data.batch_size``."""
    for section, kind in SECTIONS.items():
        add_section(parser, section, kind)


def add_section(parser: argparse.ArgumentParser, title: str, kind: Any) -> None:
    """Add an option for every setting of one dataclass; old names of options are accepted, but not shown."""
    group = parser.add_argument_group(f"{title} settings")
    defaults = plain(kind())
    former: dict[str, list[str]] = {}
    for old, name in RENAMED.get(title, {}).items():
        former.setdefault(name, []).extend([old] * (option(old) not in SHORT_FORMS.get(name, ())))
    for field in dataclasses.fields(kind):
        name = field.name
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
            _add_method_options(group, name, several=get_origin(field.type) is tuple)
        for old in former.get(name, ()):
            group.add_argument(option(old), dest=name, help=argparse.SUPPRESS, **_form(name, field.type))


def _add_method_options(group: Any, setting: str, several: bool) -> None:
    """Add an option for every option of the methods of a kind: ``--format.branches``, ``--callbacks.NAME.OPTION``."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for method in KINDS[setting]:
        for name, field in KINDS[setting].options(method).items():
            found.setdefault(f"{setting}.{method}.{name}" if several else f"{setting}.{name}", []).append(
                (method, field)
            )
    for path, owners in found.items():
        field = owners[0][1]
        help = getattr(field.default, "description", None) or ""
        of = ", ".join(f"{owner} (default: {getattr(f.default, 'default', f.default)})" for owner, f in owners)
        form = _form(path.rpartition(".")[2], field.type)
        if form.get("action") is argparse.BooleanOptionalAction:  # its name has no place for no-
            form = {"default": argparse.SUPPRESS, "metavar": "{true,false}"}
        group.add_argument(f"--{path}", dest=path, help=f"{help}; of {of}".replace("%", "%%"), **form)


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
        raise UserError("; ".join(describe_error(e) for e in error.errors())) from None


def _form(name: str, kind: Any) -> dict[str, Any]:
    """Say how argparse reads a setting; the values themselves are checked by `Config`."""
    origin = get_origin(kind)
    if kind in (bool, bool | None):
        return {"action": argparse.BooleanOptionalAction, "default": argparse.SUPPRESS}
    base: dict[str, Any] = {"default": argparse.SUPPRESS, "metavar": name.rpartition("_")[2].upper()}
    if origin is Literal:
        return {**base, "metavar": f"{{{','.join(get_args(kind))}}}"}
    if origin is tuple:
        return {**base, "nargs": "*"}
    if origin is dict:
        return {**base, "nargs": "*", "metavar": "PATTERN=VALUE"}
    return base


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line.

    Raises:
        UserError: an option is unknown (the message gives the nearest one), belongs to older versions, or lacks its
            value.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    gone: Mapping[str, str] = {**now_options(), **getattr(parser, "gone", {})}
    for name in (argument.partition("=")[0] for argument in arguments):
        if name in gone:
            raise UserError(f"option {name} is now written {gone[name]}")
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        options = [
            name for action in parser._actions if action.help != argparse.SUPPRESS for name in action.option_strings
        ]
        met = unknown[0].partition("=")[0]
        if not met.startswith("-"):
            raise UserError(f"unexpected argument {short(met)} ({parser.prog} --help lists all)")
        raise UserError(f"unknown option {met!r}{nearest_option(met, options)} ({parser.prog} --help lists all)")
    return known


def nearest_option(met: str, options: Sequence[str]) -> str:
    """Return ``", did you mean '--x'?"``, also for other libraries' names of a setting; empty if nothing is near."""
    word = met.removeprefix("--").replace("-", "_")
    meant = option(settings_by_word().get(word, word))
    return f", did you mean {meant!r}?" if meant in options else nearest(met, options)


def make_parser(
    prog: str,
    description: str,
    usage: str | None = "[--config FILE] [--SETTING VALUE ...]",
    gone: Mapping[str, str] | None = None,
) -> argparse.ArgumentParser:
    """Make a parser whose errors are `UserError`s.

    Args:
        prog: Name of the command.
        description: What the command does.
        usage: Text after the command in its usage line; None: argparse lists all options.
        gone: Today's spelling of options of older versions, by the old spelling.
    """
    parser = _Parser(prog=prog, usage=usage and f"{prog} {usage}", description=description, allow_abbrev=False)
    parser.gone = gone or {}
    return parser


def add_run(parser: argparse.ArgumentParser, kind: str, more: str = "") -> None:
    """Add the argument RUN, which names an earlier run.

    Args:
        parser: Parser of the command.
        kind: Kind of run: run or campaign.
        more: Help text on what else is accepted.
    """
    parser.add_argument("run", metavar="RUN", help=f"{kind}: its name in --output, or its folder{more}")


def add_resume(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add the option ``--resume RUN``; see `add_run`."""
    parser.add_argument("--resume", metavar="RUN", help=f"continue {kind}: its name in --output, or its folder")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--output`` to a command that has no settings."""
    parser.add_argument("--output", metavar="DIR", default="runs", help="folder of the runs (default: runs)")


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
    config = from_dict(values)
    check_methods(config)
    return config


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
    with gate(what):
        content = current_sections(read_yaml(expanded(options.config)))
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
