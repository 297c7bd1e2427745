"""Tables from strangers that name image files, read by ``load_table``."""

import csv
import gzip
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.mutators import STRINGS, change_bytes, change_file, replace_file
from tests.fuzz.surface import Expect, Mutation, Surface
from tests.fuzz.surfaces.data import read_all, write_tree

HEADER = ["path", "label", "domain", "split"]
PLACES = ("/dev/zero", "/dev/stdin", "/proc/self/mem", "../outside/canary", ".", "s3://bucket/a.png", "file:///etc",
          "a\0b", "x" * 300, "data.csv", "\ud7ff.png", "")  # fmt: skip
NAMES = ("classes.txt", "classes.json")


def make(seeds: Path) -> Callable[[Path], object]:
    """Write tables of integer labels, plain, packed and as Parquet, beside their images and the classes' names."""
    for kind in ("csv", "csv.gz", "parquet"):
        folder = seeds / kind
        files = sorted(write_tree(folder / "images").rglob("*.png"))
        labels = sorted({file.parent.name for file in files})
        rows = [
            [str(file.relative_to(folder)), labels.index(file.parent.name), file.parent.parent.name,
             ("train", "train", "val", "test")[number % 4]]
            for number, file in enumerate(files)
        ]  # fmt: skip
        (folder / "classes.txt").write_text("\n".join(labels))
        _write(folder / f"data.{kind}", [HEADER, *rows])
    return lambda folder: read_all(_table_of(folder))


def mutate(random: Random, folder: Path) -> Mutation:
    """Change the table's bytes or texts, the names beside it, or an image."""
    table = _table_of(folder)
    kind = random.choice(("bytes", "text", "text", "header", "row", "file", "names", "image"))
    if kind == "bytes":
        return Mutation(_change_inside(random, table), Expect.ANY)
    if kind == "file":
        return Mutation(replace_file(random, table), Expect.ANY)
    if kind == "names":
        name = random.choice(NAMES)
        (folder / name).write_bytes(random.choice((b"", b"a", b"\xff", b"a\na", b"{" * 10**5, b'{"0": 3}', b"[1]")))
        return Mutation(name, Expect.ANY)
    if kind == "image":
        return Mutation(change_file(random, random.choice(sorted(folder.rglob("*.png")))), Expect.ANY)
    rows = _read(table)
    row = rows[0] if kind == "header" else rows[random.randrange(1, len(rows))]
    if kind == "row":
        row += random.choice(([""], ["x"] * 1000)) if random.random() < 0.5 else rows[1]
    else:
        row[random.randrange(len(row))] = random.choice((*PLACES, *STRINGS, "-1", "1e9", "9" * 5000, '"', "path"))
    _write(table, rows)
    return Mutation(f"{kind}: {str(row)[:80]!r}", Expect.ANY)


def _table_of(folder: Path) -> Path:
    return next(path for path in (folder / f"data.{kind}" for kind in ("csv.gz", "parquet", "csv")) if _is_there(path))


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists() or path.name == "data.csv"


def _read(file: Path) -> list[list[str]]:
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        return [table.column_names, *([str(value) for value in row.values()] for row in table.to_pylist())]
    data = file.read_bytes()
    return list(csv.reader((gzip.decompress(data) if file.suffix == ".gz" else data).decode().splitlines()))


def _write(file: Path, rows: list[list[object]] | list[list[str]]) -> None:
    """Write a table; texts that UTF-8 lacks are written as they are in memory."""
    if file.suffix == ".parquet":
        width = min(map(len, rows))
        columns = [[str(row[i]).encode(errors="replace").decode() for row in rows] for i in range(width)]
        pq.write_table(pa.table([pa.array(column[1:]) for column in columns], [column[0] for column in columns]), file)
        return
    lines = "\r\n".join(",".join('"' + str(value).replace('"', '""') + '"' for value in row) for row in rows)
    data = lines.encode(errors="surrogatepass")
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def _change_inside(random: Random, file: Path) -> str:
    """Change the bytes of a file, or those that it packs."""
    if file.suffix != ".gz" or random.random() < 0.3:
        return change_file(random, file)
    data, recipe = change_bytes(random, gzip.decompress(file.read_bytes()))
    file.write_bytes(gzip.compress(data))
    return f"packed: {recipe}"


surface = Surface("listings", make, mutate, named=("{folder}", "image", "domain", "data", "label"))
