"""Methods by name: each a small frozen dataclass with options of its own, in a file of its own.

A registry is strict: registering a name twice, an unknown name and an unknown option are errors.

>>> FORMATS = Registry("adapter format")
>>> @FORMATS.register("branched")
... class Branched:
...     '''Several branches side by side.'''
...
...     branches: int = Field(default=4, ge=1, description="parallel branches")
>>> FORMATS.make({"name": "branched", "branches": 2}).branches
2
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Generic, TypeVar, cast

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from metalora.errors import UserError, given_as
from metalora.reading import describe_error, short

T = TypeVar("T")
E = TypeVar("E")
LONGEST = 300
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def nearest(name: str, choices: Iterable[str], likeness: float = 0.5) -> str:
    """Return ``", did you mean 'x'?"`` for the nearest choice, or an empty string if none is so alike (0 to 1)."""
    if len(name) > LONGEST:  # no misspelling, and it would take long
        return ""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=likeness)
    return f", did you mean {close[0]!r}?" if close else ""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A method as settings and files name it: ``"tr"`` or ``{"name": "multi_lora", "branches": 2}``.

    Attributes:
        name: The method's name.
        options: The options that are set; all others have their defaults.
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, value: Any) -> "Choice":
        """Make a choice from its plain form.

        Raises:
            ValueError: the value is neither a name nor a mapping with a name.
        """
        if isinstance(value, Choice):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError(f"wanted a name, or {{name: NAME, OPTION: VALUE}}, got {short(value)}")
        return cls(value["name"], {name: option for name, option in value.items() if name != "name"})

    def plain(self) -> str | dict[str, Any]:
        """Return the plain form: the name alone if no options are set."""
        return {"name": self.name, **self.options} if self.options else self.name

    def __str__(self) -> str:
        options = ", ".join(f"{name}={option}" for name, option in self.options.items())
        return f"{self.name}({options})" if options else self.name


def listed(value: Any) -> Any:
    """Return a list of methods; one method by itself is a list of one."""
    return [value] if isinstance(value, str | Mapping | Choice) else value


Method = Annotated[Choice, BeforeValidator(Choice.parse), PlainSerializer(Choice.plain)]
Methods = Annotated[tuple[Method, ...], BeforeValidator(listed)]

KINDS: dict[str, "Registry[Any]"] = {}  # by the setting that names a method of the kind


class Registry(Generic[T]):
    """The methods of one kind.

    Args:
        kind: Name of the kind in error messages, in the singular ("adapter format").
        setting: Setting that names one method, or a list of methods; None if no setting does.
        frozen: Whether methods are immutable; else they may keep a state of their own.
        several: Whether the setting names a list of methods.
    """

    def __init__(self, kind: str, setting: str | None = None, frozen: bool = True, several: bool = False) -> None:
        self.kind = kind
        self.setting = setting
        self.frozen = frozen
        self.several = several
        self._entries: dict[str, type[T]] = {}
        if setting is not None:
            KINDS[setting] = self

    def register(self, name: str) -> Callable[[type[E]], type[E]]:
        """Return a decorator that makes a class a dataclass and adds it.

        Raises:
            ValueError: ``name`` is taken.
            TypeError: the class leaves out what its base class requires.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already")

        def add(entry: type[E]) -> type[E]:
            missing = sorted(getattr(entry, "__abstractmethods__", ()))
            if missing:
                raise TypeError(f"{self.kind} {name!r} does not define {', '.join(missing)}")
            method: Any = dataclass(frozen=self.frozen, config=STRICT)(entry)
            method.name = name
            self._entries[name] = method
            return method  # type: ignore[no-any-return]

        return add

    def get(self, name: str) -> type[T]:
        """Return the class of a method.

        Raises:
            UserError: the name is unknown; the message lists the choices.
        """
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {short(name)}{nearest(name, self._entries)} "
                            f"(choices: {', '.join(self)}){self._given_as()}")  # fmt: skip
        return self._entries[name]

    def make(self, choice: Choice | str | Mapping[str, Any] | T) -> T:
        """Make the method of a choice, with checked options; a method that was made already is returned as it is.

        Raises:
            UserError: the method or an option is unknown, or an option does not take its value.
        """
        if isinstance(choice, tuple(self._entries.values())):
            return cast(T, choice)
        try:
            chosen = Choice.parse(choice)
        except ValueError as error:
            raise UserError(f"{self.kind}: {error}{self._given_as()}") from None
        method, known = self.get(chosen.name), self.options(chosen.name)
        for name in chosen.options:
            if name not in known:
                there = f" (options: {', '.join(known)})" if known else ""
                raise UserError(f"{self.kind} {chosen.name!r} has no option {short(name)}{nearest(name, known)}{there}"
                                f"{self._given_as()}")  # fmt: skip
        try:
            return TypeAdapter(method).validate_python(dict(chosen.options))
        except ValidationError as error:
            found = error.errors()
            said = "; ".join(map(describe_error, found))
            paths = [self.path(chosen.name, str(e["loc"][0])) for e in found if e["loc"]]
            raise UserError(f"{self.kind} {chosen.name!r}: {said}{self._given_as(*paths)}") from None

    def path(self, method: str, option: str) -> str:
        """Return the name of a method's option among the settings: ``format.branches``, ``callbacks.NAME.OPTION``."""
        return f"{self.setting}.{method}.{option}" if self.several else f"{self.setting}.{option}"

    def _given_as(self, *paths: str) -> str:
        """Return the command-line options that an error is about; nothing if no setting names these methods."""
        return "" if self.setting is None else given_as(*(paths or (self.setting,)))

    def options(self, name: str) -> dict[str, Any]:
        """Return the options of a method as dataclass fields, by name."""
        return {field.name: field for field in dataclasses.fields(self.get(name))}  # type: ignore[arg-type]

    def full(self, choice: Choice | str | Mapping[str, Any] | T) -> dict[str, Any]:
        """Return a choice with all options, defaults included, as it is recorded and compared."""
        method: Any = self.make(choice)
        options: dict[str, Any] = TypeAdapter(type(method)).dump_python(method, mode="json")
        return {"name": method.name, **options}

    def checked(self, choice: Choice) -> Choice:
        """Return a choice with its options as their own types: 3, where text was given. See `make` for errors."""
        full = self.full(choice)
        return Choice(choice.name, {name: full[name] for name in choice.options})

    def spelled_out(self, value: Any) -> Any:
        """Return a setting of this kind, one choice or a list of choices, with all options. See `full`."""
        if not isinstance(value, list | tuple):
            return self.full(value)
        full = [self.full(one) for one in value]
        names = [one["name"] for one in full]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{self.kind} {twice!r} is named twice{self._given_as()}")
        return full

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries


__all__ = ["KINDS", "STRICT", "Choice", "Field", "Method", "Methods", "Registry", "listed", "nearest"]
