"""YAML of settings, read by ``metalora train --config``."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from metalora.config import Config, from_dict, to_dict, to_yaml
from metalora.reading import read_yaml
from tests.fuzz.mutators import change_file, change_value, dump, replace_file
from tests.fuzz.surface import Expect, Mutation, Surface

SCALARS = (
    "1", "-1", "0x1f", "0o7", "1_000", "1e3", "1:30", ".inf", ".nan", "~", "null", "yes", "2024-01-01",
    "2024-01-01 10:00:00", "=", "<<",
    "!!int x", "!!float y", "!!bool z", "!!binary =", "!!timestamp 3", "!!python/object:os.system {}",
    "!!python/name:os.system",
    "!!set {a}", "!!omap [a: 1]", "!x 1", "!<tag:yaml.org,2002:int> 1", "*a", "&a 1", "'x'", '"\\u0000"',
    '"\\ud800"', "|\n  x", "[", "{",
    "]", "? a", "- - -", "@x", "`x", "%TAG", "\t", "9" * 5000, "1e" + "9" * 50, "[" * 3000, "{a: " * 3000,
    "x" * 2**21, "\ufeff", "\x85",
)  # fmt: skip
LINES = ("---", "...", "%YAML 9.9", "# x", "a: 1", "1: a", "null: 1", "[1]: 2", "? {a: 1}\n: 2",
    "<<: {train: {lr: 1}}", "<<: *a", "train: &a {b: *a}",
         "a: *b", "train: {<<: [*a]}", "train: {lr: 1, lr: 2}", "train: {1: 2}", "\u2028", "'train'\n: {}")  # fmt: skip


def make(seeds: Path) -> Callable[[Path], object]:
    """Write the settings that are the default, and some that are set."""
    texts = {
        "all": to_yaml(Config()),
        "some": "# ours\ntrain:\n  lr: 0.003\n  epochs: 3\n"
        "adapter: {format: cp, rank: 2, target_modules: [conv, 'layer.*']}\n"
        "data: &d\n  batch_size: 32\nevaluate:\n  knn: [1, 5]\n",
    }
    for kind, text in texts.items():
        (seeds / kind).mkdir(parents=True)
        (seeds / kind / "config.yaml").write_text(text, encoding="utf-8")
    return lambda folder: to_dict(from_dict(read_yaml(folder / "config.yaml")))


def mutate(random: Random, folder: Path) -> Mutation:
    """Change a file's bytes, lines, scalars or values."""
    file = folder / "config.yaml"
    text = file.read_text(encoding="utf-8")
    kind = random.choice(("bytes", "file", "value", "value", "scalar", "scalar", "line", "bomb", "form"))
    if kind == "bytes":
        return Mutation(change_file(random, file), Expect.ANY)
    if kind == "file":
        return Mutation(replace_file(random, file), Expect.ANY)
    if kind == "form":
        return _rewrite(random, file)
    lines = text.splitlines()
    where = random.randrange(len(lines))
    if kind == "value":
        values, done = change_value(random, read_yaml(file))
        text, recipe = dump(values), done
    elif kind == "scalar":
        recipe = random.choice(SCALARS)
        lines[where] = f"{lines[where].partition(':')[0]}: {recipe}"
        text = "\n".join(lines)
    elif kind == "line":
        recipe = random.choice(LINES)
        text = "\n".join([*lines[:where], recipe, *lines[where:]])
    else:
        text, recipe = _bomb(random, text)
    file.write_bytes(text.encode(errors="surrogatepass"))
    return Mutation(f"{kind}: {recipe[:80]!r} ({len(recipe)} characters)", Expect.ANY)


def _rewrite(random: Random, file: Path) -> Mutation:
    """Write the same values in another way."""
    text, values = file.read_text(encoding="utf-8"), read_yaml(file)
    ways: dict[str, str] = {
        "as JSON": dump(values),
        "a comment": f"# {'x' * random.randrange(10**5)}\n{text}",
        "with a mark in front": f"\ufeff{text}",
        "Windows's lines": text.replace("\n", "\r\n"),
        "sections turned around": dump(dict(reversed(values.items()))),
        "a document's marks": f"---\n{text}...\n",
        "an alias": f"{text}\ncluster: &c {{}}\ntracking: *c\n" if "cluster" not in values else text + "\n",
    }
    kind = random.choice(sorted(ways))
    file.write_text(ways[kind], encoding="utf-8", newline="")
    return Mutation(f"the same, {kind}", Expect.SAME)


def _bomb(random: Random, text: str) -> tuple[str, str]:
    levels, width = random.choice(((9, 9), (30, 2), (5, 200), (2, 20_000)))
    lists = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lists += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    recipe = f"{width} aliases in {levels} levels"
    where: Any = random.choice(("before", "in a section", "in a list", "as a key"))
    tail = {"before": "", "in a section": f"train: *a{levels - 1}\n",
    "in a list": f"adapter: {{target_modules: *a{levels - 1}}}\n",
            "as a key": f"? *a{levels - 1}\n: 1\n"}[where]  # fmt: skip
    return "\n".join(lists) + "\n" + tail + (text if random.random() < 0.5 else ""), f"{recipe}, {where}"


surface = Surface("config", make, mutate, named=("{folder}", "section", "setting", ".", "batch_size"), share=2)
