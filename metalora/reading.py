"""Read files, also a stranger's: any fault in a file becomes an error of one line that names the file.

YAML and JSON are read here, within `metalora.limits`, into plain values: mappings with string keys, each key once,
lists, strings, numbers, booleans, null.
"""

import functools
import gzip
import json
import math
import reprlib
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from metalora.errors import UserError, one_line
from metalora.limits import limits

T = TypeVar("T")

_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


def short(value: object) -> str:
    """Return a value as error messages quote it: its ``repr``, cut to about one line."""
    try:
        text = _repr.repr(value)
    except Exception:  # an integer of more digits than Python writes, or whatever its class does
        text = type(value).__name__
    text = " ".join(line.strip() for line in text.splitlines())  # of an array, say
    return text if len(text) <= 200 else f"{text[:200]}..."


@contextmanager
def gate(what: str) -> Iterator[None]:
    """Turn any error in the block, which reads a file, into an error of one line.

    Args:
        what: Name of the file, with which the message begins: ``"adapter PATH"``.

    Raises:
        UserError: the block raised an error.
    """
    try:
        yield
    except UserError as error:
        if what in str(error):
            raise
        raise UserError(f"{what}: {error}") from error
    except Exception as error:  # parsers raise nearly anything: recursion, memory, overflow, keys that are missing
        raise UserError(f"{what} cannot be read: {_reason(error)}") from error


def check_plain(file: Path) -> None:
    """Check that a file is no pipe or device: reading one may wait for ever.

    Raises:
        ValueError: the file is a pipe or a device.
    """
    with suppress(FileNotFoundError):
        mode = file.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError("it is a pipe or a device")


def read_bytes(file: Path, most: int, what: str) -> bytes:
    """Read the bytes of a whole file.

    Args:
        file: The file.
        most: Largest size that is read, in bytes.
        what: Name of the file in error messages.

    Raises:
        UserError: the file cannot be read, is no plain file, or is larger.
    """
    with gate(what):
        check_plain(file)
        with file.open("rb") as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise ValueError(f"it has more than {most} bytes")
    return data


def read_lines(file: Path, what: str) -> Iterator[bytes]:
    """Yield the lines of a file, decompressed if its name ends in .gz; none if the file does not exist.

    Raises:
        UserError: the file cannot be read, is no plain file, or has a line longer than `limits` allow.
    """
    if not file.exists():
        return
    most = limits().text_bytes
    with gate(what):
        check_plain(file)
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            while line := stream.readline(most + 1):
                if len(line) > most:
                    raise ValueError(f"it has a line of more than {most} bytes")
                yield line


def read_json(file: Path, what: str, form: type[T] | Any = dict[str, Any]) -> T:
    """Read a JSON file.

    Args:
        file: The file.
        what: Name of the file in error messages.
        form: Type that the value must have.

    Raises:
        UserError: the file cannot be read, is no JSON, has a key twice or a number such as NaN, or has another form.
    """
    value: T = parse_json(read_bytes(file, limits().text_bytes, what), what, form)
    return value


def parse_json(data: bytes, what: str, form: type[T] | Any = dict[str, Any]) -> T:
    """Read the bytes of a JSON file; see `read_json`."""
    with gate(what):
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite
        )
        _check_depth(value)
    checked: T = check_form(value, form, what)
    return checked


def check_form(value: object, form: type[T] | Any, what: str) -> T:
    """Check that a value has a type, and return it as that type.

    Raises:
        UserError: the value does not have the type; the message names the place in it.
    """
    with gate(what):
        checked: T = _adapter(form).validate_python(value)
    return checked


def config_name(file: str | Path) -> str:
    """Return the name of a YAML file of settings in error messages."""
    return f"config file {str(file)!r}"


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file of settings, which must hold a mapping or nothing.

    Dates stay strings. Only the tags of strings, numbers, booleans and null are accepted.

    Raises:
        UserError: the file cannot be read, is no YAML, holds no mapping, has a key twice or a key that is no string, or
            is larger or deeper than `limits` allow when its aliases are written out.
    """
    what, most = config_name(file), limits().yaml_bytes
    text = read_bytes(file, most, what)
    with gate(what):
        content = text.decode("utf-8-sig")
        _measure(content, most)
        value = yaml.load(content, _Loader)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{what} must hold sections with settings, got {short(value)}")
    return value


def describe_error(error: Any) -> str:
    """Return an error that pydantic found, as one line."""
    message = error["msg"].removeprefix("Value error, ")
    place = ".".join(str(part)[:80] for part in error["loc"])
    return f"{place} = {short(error['input'])}: {message[0].lower()}{message[1:]}" if place else message


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False)
        more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
        return f"{describe_error(found[0])}{more}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(limits().nesting + 1):
        containers: list[Any] = [inner for inner in level if isinstance(inner, dict | list)]
        if not containers:
            return
        level = [inner for outer in containers for inner in (outer.values() if isinstance(outer, dict) else outer)]
    raise ValueError(f"it is nested in more than {limits().nesting} levels")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {short(name)} occurs twice")
        values[name] = value
    return values


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:80])


def _measure(content: str, most: int) -> None:
    """Check depth and size of a YAML text with its aliases written out, before anything is made of it."""
    sizes: dict[str, tuple[int, int]] = {}  # of what each anchor names: values, and characters
    open_: list[tuple[str | None, int, int]] = []
    count = characters = 0
    for event in yaml.parse(content, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"{_line(event)}: alias {short(event.anchor)} inside the value that it names")
            count, characters = count + sizes[event.anchor][0], characters + sizes[event.anchor][1]
        elif isinstance(event, yaml.ScalarEvent):
            count, characters = count + 1, characters + len(event.value)
            if event.anchor:
                sizes[event.anchor] = (1, len(event.value))
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, count, characters))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, characters_before = open_.pop()
            if anchor:
                sizes[anchor] = (count - before, characters - characters_before)
        place = _line(event)
        if len(open_) > limits().nesting:
            raise ValueError(f"{place}: nested in more than {limits().nesting} levels")
        if count > limits().values or characters > most:
            raise ValueError(f"{place}: with its aliases written out it is too long")


def _line(met: Any) -> str:
    return f"line {met.start_mark.line + 1}"


class _Loader(yaml.SafeLoader):
    """YAML of settings: a scalar is a number, a boolean, null or else a string; keys are unique strings."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            place = _line(key)
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise ValueError(f"{place}: key {short(key.value)} is no string (quote it)")
            if key.value in seen:
                raise ValueError(f"{place}: {short(key.value)} is set twice")
            seen.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        kind = node.tag.rpartition(":")[2]
        if kind == "timestamp" or (kind in ("int", "float") and ":" in node.value):  # 1:30 is no 90
            node.tag = "tag:yaml.org,2002:str"
        return node


_PLAIN = ("str", "int", "float", "bool", "null", "seq", "map")
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _PLAIN
}
