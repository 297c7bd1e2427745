"""List every method of every kind that settings can name."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from metalora.adapters import formats, initializers
from metalora.config import SECTIONS, Config, methods_in, spelled_out, to_dict
from metalora.data import augmentations
from metalora.errors import UserError
from metalora.registry import KINDS, nearest
from metalora.train import callbacks, objectives, optimizers

REGISTERED = (formats, initializers, augmentations, objectives, callbacks, optimizers)  # importing them fills `KINDS`


@dataclass(frozen=True)
class Described:
    """A method as `metalora methods` shows it.

    Attributes:
        setting: Setting that names the method.
        kind: Kind of the method, in the singular.
        name: Name of the method.
        text: Docstring of the method: what it does, equation and source.
        options: Name, type, default and description of each option.
    """

    setting: str
    kind: str
    name: str
    text: str
    options: tuple[tuple[str, str, Any, str], ...]


def check_methods(config: Config) -> Config:
    """Check that the methods that settings name exist and take the given options.

    Returns:
        The config with options as their own types: 3, where text was given.

    Raises:
        UserError: a method or an option is unknown, an option does not take its value, or a list names a method twice.
    """
    spelled_out(to_dict(config))
    sections = {}
    for section in SECTIONS:
        settings = getattr(config, section)
        changes: dict[str, Any] = {}
        for name, default in methods_in(section).items():
            value = getattr(settings, name)
            several = isinstance(default, tuple)
            checked = [KINDS[name].checked(choice) for choice in (value if several else [value])]
            changes[name] = tuple(checked) if several else checked[0]
        sections[section] = replace(settings, **changes)
    return replace(config, **sections)


def described() -> Iterator[Described]:
    """Yield every method of every kind, in the order of the kinds' names, then of the methods' names."""
    for setting, registry in sorted(KINDS.items()):
        for name in registry:
            method = registry.get(name)
            options = tuple(
                (
                    option,
                    _form(field.type),
                    getattr(field.default, "default", field.default),
                    getattr(field.default, "description", None) or "",
                )
                for option, field in registry.options(name).items()
            )
            yield Described(setting, registry.kind, name, inspect.cleandoc(method.__doc__ or ""), options)


def _form(kind: Any) -> str:
    """Return the type or the choices of an option, as text."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return str(getattr(kind, "__name__", kind))


def find(name: str) -> list[Described]:
    """Return the methods with a given name, of any kind; for the name of a setting, all methods of its kind.

    Raises:
        UserError: no method and no setting has the name.
    """
    every = list(described())
    found = [one for one in every if name == one.name or name.removesuffix("s") == one.setting.removesuffix("s")]
    if not found:
        names = [*dict.fromkeys([one.setting for one in every] + [one.name for one in every])]
        raise UserError(f"unknown method {name!r}{nearest(name, names)} (kinds and methods: {', '.join(names)})")
    return found
