"""Changes that know nothing of a format: of bytes, of files, and of plain values (JSON, YAML)."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from metalora.files import SUMS, seal

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
BACKTRACKING = "re:(a|a?)+(([a-z.0-9]+)+)+$!"
STRINGS = (
    "", " ", "\0", "\n", "\ud800", "é", "../../outside/canary", "/dev/zero", "/etc/passwd", "~nobody/x", "*", "re:(",
    "re:.*",
    BACKTRACKING, "*a" * 40, "nan", "1e999", "auto", "a" * 300, "x" * 10**6, "[red]", "%s", "{0}", "../..", "s3://x",
    "CON",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63, 10**7, 10**9, 10**18, 2**64, -(2**63), 10**400, 0.0, -0.0, 0.5,
    1e-320,
    1e308, -1e308, float("nan"), float("inf"), float("-inf"), [], {}, [[]], [None], {"": None}, ["*"], [1] * 1000,
    *STRINGS,
)  # fmt: skip


def change_bytes(random: Random, data: bytes) -> tuple[bytes, str]:
    """Change the bytes of a file; return the new ones and what was done."""
    while True:
        changed, recipe = random.choice(_BYTES)(random, data)
        if changed != data:
            return changed, recipe


def change_file(random: Random, file: Path) -> str:
    """Change some bytes of a file."""
    data, recipe = change_bytes(random, file.read_bytes())
    file.write_bytes(data)
    return f"{file.name}: {recipe}"


def replace_file(random: Random, file: Path) -> str:
    """Put something else where a file was: nothing, a folder, a pipe, a link, a device."""
    outside = next(folder for folder in file.parents if (folder.parent / "outside").is_dir()).parent / "outside"
    kind = random.choice(("missing", "folder", "pipe", "link to /dev/zero", "link to itself", "link to nothing",
                          "link outside", "empty"))  # fmt: skip
    file.unlink()
    targets = {"link to /dev/zero": "/dev/zero", "link to itself": file.name, "link to nothing": "nothing",
               "link outside": str(outside / "canary")}  # fmt: skip
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "empty":
        file.touch()
    elif kind in targets:
        file.symlink_to(targets[kind])
    return f"{file.name}: {kind}"


LONGEST = 2_000_000  # parts that are written of a value


def change_value(random: Random, value: Any, depths: Sequence[int] = (50, 70, 2000, 200_000)) -> tuple[Any, str]:
    """Change a plain value somewhere within; return the changed one, which is in part the same, and what was done."""
    root = [value]
    places = _places(root)
    parent, key, place = random.choice(places)
    held = parent[key]
    kind = random.choice(("replace", "replace", "replace", "drop", "rename", "add", "wrap", "nest", "repeat", "swap"))
    if kind == "drop" and parent is not root:
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        name = random.choice((*STRINGS, f"{key}x", str(key)[:-1], str(key).upper()))
        parent[name] = parent.pop(key)
        place += f" to {name[:40]!r}"
    elif kind == "add" and isinstance(held, dict):
        name = random.choice((*STRINGS, *(str(key) for key in held)))
        held[name] = random.choice(VALUES)
        place += f".{name[:40]!r} = {_short(held[name])}"
    elif kind == "wrap":
        parent[key] = random.choice(([held], {"x": held}, _short(held), [held, held]))
    elif kind == "nest":
        depth = random.choice(depths)
        for _ in range(depth):
            held = [held]
        parent[key] = held
        kind = f"nest in {depth} lists"
    elif kind == "repeat" and isinstance(held, list) and held:
        times = random.choice((2, 1000, 10**5))
        parent[key] = held * times
        kind = f"repeat {times} times"
    elif kind == "swap":
        other, name, other_place = random.choice(places)
        place += f" with {other_place}"
        if not _within(held, other) and not _within(other[name], parent):
            parent[key], other[name] = other[name], held
    else:
        kind, parent[key] = "replace", random.choice(VALUES)
        place += f" by {_short(parent[key])}"
    return root[0], f"{kind} {place}"


def reseal(folder: Path) -> None:
    """Write a folder's checksums anew, if it has some, as somebody does who means harm."""
    if (folder / SUMS).is_file():
        seal(folder)


def dump(value: Any) -> str:
    """Write a plain value as JSON, however deep, with whatever numbers and strings; one without end is cut off."""
    parts: list[str] = []
    todo: list[Any] = [value]  # by hand, since json's writer recurses
    while todo and len(parts) < LONGEST:
        met = todo.pop()
        if isinstance(met, _Text):
            parts.append(met)
        elif isinstance(met, dict):
            todo.append(_Text("}"))
            for number, (key, held) in enumerate(reversed(met.items())):
                todo += [_Text("," if number else ""), held, _Text(f"{_scalar(str(key))}:")]
            todo.append(_Text("{"))
        elif isinstance(met, list | tuple):
            todo.append(_Text("]"))
            for number, held in enumerate(reversed(met)):
                todo += [_Text("," if number else ""), held]
            todo.append(_Text("["))
        else:
            parts.append(_scalar(met))
    return "".join(parts)


class _Text(str):
    """What is written as it stands."""


def _scalar(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:d}" if abs(value) < 10**4000 else "9" * 5000
    return json.dumps(value, default=lambda other: f"a {type(other).__name__}")


def _short(value: Any) -> str:
    text = dump(value)
    return text if len(text) <= 60 else f"{text[:60]}... ({len(text)} characters)"


def _places(root: list[Any]) -> list[tuple[Any, Any, str]]:
    """Return every value within as its holder and its key there, with a name for people, of deep ones cut."""
    found: list[tuple[Any, Any, str]] = [(root, 0, "")]
    for parent, key, place in found:
        value = parent[key]
        keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        found += [(value, name, f"{place}.{str(name)[:40]}" if len(place) < 100 else place) for name in keys]
    return found


def _within(holder: Any, part: Any) -> bool:
    return any(parent[key] is part for parent, key, _ in _places([holder]))


def _span(random: Random, data: bytes) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 2, 4, 8, 16, 64, 256, 4096)))


def _flip(random: Random, data: bytes) -> tuple[bytes, str]:
    changed, place = bytearray(data or b"\0"), random.randrange(max(1, len(data)))
    bit = random.randrange(8)
    changed[place] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {place} of {len(data)}"


def _early_flip(random: Random, data: bytes) -> tuple[bytes, str]:
    changed, recipe = _flip(random, data[:200])
    return changed + data[200:], recipe


def _late_flip(random: Random, data: bytes) -> tuple[bytes, str]:
    changed, recipe = _flip(random, data[-200:])
    return data[:-200] + changed, f"{recipe}, at the end"


def _set(random: Random, data: bytes) -> tuple[bytes, str]:
    start, end = _span(random, data)
    fill = random.choice((b"\0", b"\xff", b" ", b"A"))
    return data[:start] + fill * (end - start) + data[end:], f"bytes {start} to {end} are {fill!r}"


def _noise(random: Random, data: bytes) -> tuple[bytes, str]:
    start, end = _span(random, data)
    return data[:start] + random.randbytes(end - start) + data[end:], f"bytes {start} to {end} are random"


def _number(random: Random, data: bytes) -> tuple[bytes, str]:
    start, size = random.randrange(len(data) + 1), random.choice((1, 2, 4, 8))
    number, order = random.choice(NUMBERS) % 256**size, random.choice(("little", "big"))
    changed = data[:start] + number.to_bytes(size, order) + data[start + size :]
    return changed, f"{number} in {size} bytes, {order}-endian, at byte {start}"


def _cut(random: Random, data: bytes) -> tuple[bytes, str]:
    end = random.choice((0, 1, len(data) // 2, max(0, len(data) - 1), random.randrange(len(data) + 1)))
    return data[:end], f"cut off after {end} of {len(data)} bytes"


def _delete(random: Random, data: bytes) -> tuple[bytes, str]:
    start, end = _span(random, data)
    return data[:start] + data[end:], f"bytes {start} to {end} are gone"


def _insert(random: Random, data: bytes) -> tuple[bytes, str]:
    start, size = random.randrange(len(data) + 1), random.choice((1, 4, 64, 1024))
    return data[:start] + random.randbytes(size) + data[start:], f"{size} random bytes more at {start}"


def _double(random: Random, data: bytes) -> tuple[bytes, str]:
    start, end = _span(random, data)
    times = random.choice((1, 2, 100))
    return data[:end] + data[start:end] * times + data[end:], f"bytes {start} to {end} {times} times more"


def _append(random: Random, data: bytes) -> tuple[bytes, str]:
    return data + random.choice((b"\0", b"\n", b"{}", data, random.randbytes(100))), "something more at the end"


_BYTES: tuple[Callable[[Random, bytes], tuple[bytes, str]], ...] = (
    _flip, _flip, _flip, _early_flip, _late_flip, _set, _noise, _number, _number, _cut, _delete, _insert, _double,
    _append,
)  # fmt: skip
