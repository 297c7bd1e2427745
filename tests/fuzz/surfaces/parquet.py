"""Parquet files from strangers, read by ``load_table``."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from metalora.data import SPLITS
from tests.fuzz.mutators import STRINGS, change_bytes, replace_file
from tests.fuzz.surface import Expect, Mutation, Surface
from tests.fuzz.surfaces.data import LABELS, draw, read_all, rows

PAGES = b"pages are checked"
COLUMNS = ("image", "label", "domain", "split", "id")
TYPES = (pa.string(), pa.binary(), pa.large_string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us"),
    pa.date32(),
         pa.list_(pa.string()), pa.struct({"bytes": pa.binary(), "path": pa.string()}), pa.decimal128(5), pa.null(),
         pa.dictionary(pa.int32(), pa.string()), pa.binary(4), pa.map_(pa.string(), pa.binary()), pa.list_(pa.uint8()),
         pa.large_list(pa.uint8()))  # fmt: skip


def make(seeds: Path) -> Callable[[Path], object]:
    """Write a table plainly, with checksums of its pages, in row groups, and as Hugging Face's datasets do."""
    table = small_table()
    ways: dict[str, dict[str, Any]] = {
        "plain": {"use_dictionary": False, "compression": "none"},
        "checked": {"write_page_checksum": True},
        "packed": {"compression": "zstd", "row_group_size": 5, "data_page_version": "2.0"},
    }
    for kind, way in ways.items():
        (seeds / kind).mkdir(parents=True)
        told = {PAGES: ""} if "write_page_checksum" in way else None
        pq.write_table(table.replace_schema_metadata(told), seeds / kind / "data.parquet", **way)
    (seeds / "features").mkdir()
    pq.write_table(_with_features(table), seeds / "features" / "data.parquet")
    return lambda folder: read_all(folder / "data.parquet")


def mutate(random: Random, folder: Path) -> Mutation:
    """Change a file's bytes, or write a table that is odd."""
    file = folder / "data.parquet"
    kind = random.choice(("bytes", "bytes", "table", "table", "table", "file"))
    if kind == "bytes":
        return _change_bytes(random, file)
    if kind == "file":
        return Mutation(replace_file(random, file), Expect.EITHER)
    table = pq.read_table(file)
    make_table = _bomb if random.random() < 0.02 else random.choice((*TABLES, _image, _image))
    recipe, table, expect = make_table(random, table)
    pq.write_table(table, file, store_schema=make_table is not _bomb)  # its images are to be read as plain ones
    return Mutation(recipe, expect)


def _change_bytes(random: Random, file: Path) -> Mutation:
    """Change the pages, which may have checksums, or what describes them, which has none."""
    data = file.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    if random.random() < 0.5:
        changed, recipe = change_bytes(random, data[footer:])
        file.write_bytes(data[:footer] + changed)
        return Mutation(f"footer: {recipe}", Expect.ANY)
    changed, recipe = change_bytes(random, data[4:footer])
    file.write_bytes(data[:4] + changed + data[footer:])
    checked = PAGES in (pq.read_schema(io.BytesIO(data)).metadata or {})
    return Mutation(f"pages: {recipe}", Expect.EITHER if checked else Expect.ANY)


def small_table() -> Any:
    images = []
    for *_, number in rows():
        encoded = io.BytesIO()
        draw(number).save(encoded, "PNG")
        images.append(encoded.getvalue())
    domains, labels, splits, numbers = zip(*rows(), strict=True)
    columns = dict(zip(COLUMNS, (images, labels, domains, splits, [f"n{number}" for number in numbers]), strict=True))
    return pa.table(columns)


def _with_features(table: Any) -> Any:
    images = pa.array([{"bytes": image, "path": None} for image in table["image"].to_pylist()], TYPES[9])
    labels = pa.array([LABELS.index(name) for name in table["label"].to_pylist()])
    told = {
        "info": {"features": {"label": {"names": list(LABELS), "_type": "ClassLabel"}, "image": {"_type": "Image"}}}
    }
    told_table = pa.table({"image": images, "label": labels, "domain": table["domain"], "split": table["split"]})
    return told_table.replace_schema_metadata({"huggingface": json.dumps(told)})


def _type(random: Random, table: Any) -> tuple[str, Any, Expect]:
    name, kind = random.choice(table.column_names), random.choice(TYPES)
    try:
        column = table[name].cast(kind)
    except (pa.ArrowException, ValueError):
        column = pa.nulls(len(table), kind)
    return f"{name} as {kind}", table.set_column(table.column_names.index(name), name, column), Expect.ANY


def _twice(random: Random, table: Any) -> tuple[str, Any, Expect]:
    name = random.choice(table.column_names)
    other = random.choice(table.column_names)
    return f"{name} is there twice", table.append_column(name, table[other]), Expect.REFUSED


def _missing(random: Random, table: Any) -> tuple[str, Any, Expect]:
    name = random.choice([name for name in table.column_names if name != "id"])
    return f"{name} is missing", table.drop_columns([name]), Expect.ANY if name == "domain" else Expect.REFUSED


def _nulls(random: Random, table: Any) -> tuple[str, Any, Expect]:
    name = random.choice(table.column_names)
    values = table[name].to_pylist()
    values[random.randrange(len(values))] = None
    changed = table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))
    return f"a null in {name}", changed, Expect.REFUSED


def _text(random: Random, table: Any) -> tuple[str, Any, Expect]:
    name = random.choice([name for name in table.column_names if table[name].type == pa.string()])
    values = [value.encode() for value in table[name].to_pylist()]
    text = random.choice((b"\xff\xfe", b"\xed\xa0\x80", *(text.encode(errors="replace") for text in STRINGS)))
    for row in range(len(values)) if random.random() < 0.3 else [random.randrange(len(values))]:
        values[row] = text
    column = pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())
    return f"{name} holds {text[:40]!r}", table.set_column(table.column_names.index(name), name, column), Expect.ANY


def _image(random: Random, table: Any) -> tuple[str, Any, Expect]:
    images = table["image"].to_pylist()
    row = random.randrange(len(images))
    whole = images[row]["bytes"] if isinstance(images[row], dict) else images[row]
    data, recipe = change_bytes(random, whole)
    images[row] = (
        {"bytes": data, "path": random.choice(STRINGS[:4] + STRINGS[5:9])} if isinstance(images[row], dict) else data
    )
    images = pa.array(images, table["image"].type)
    return f"image {row}: {recipe}", table.set_column(0, "image", images), Expect.ANY


def _bomb(random: Random, table: Any) -> tuple[str, Any, Expect]:
    """Name one large image in many rows: what a dictionary keeps once is not once in memory."""
    size, count = random.choice(((2**20, 2000), (10 * 2**20, 200), (2**20, 20_000), (2**28 + 1, 2)))
    encoded = io.BytesIO()
    draw(0).save(encoded, "PNG")
    images = pa.array([encoded.getvalue().ljust(size, b"\0")])
    texts = {name: [name] * count for name in ("label", "domain")}
    texts["split"] = [SPLITS[number % 3] for number in range(count)]
    columns = {"image": pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), images), **texts}
    return f"an image of {size} bytes in {count} rows", pa.table(columns), Expect.ANY


def _many(random: Random, table: Any) -> tuple[str, Any, Expect]:
    times = random.choice((0, 2, 300))
    return f"all rows {times} times", pa.concat_tables([table] * times) if times else table[:0], Expect.ANY


def _features(random: Random, table: Any) -> tuple[str, Any, Expect]:
    texts = ("{", "[]", '{"info": 1}', '{"info": {"features": []}}', "[" * 10**5,
    '{"info": {"features": {"label": {"names": 3}}}}',
             '{"info": {"features": {"label": {"names": ["a", 1, null]}}}}',
             '{"info": {"features": {"label": {"names": ["a", "a"]}}}}',
             '{"info": {"features": {"label": {"names": ["a"]}}}}', "9" * 5000, "\0", "NaN")  # fmt: skip
    text = random.choice(texts)
    return f"metadata {text[:60]}", table.replace_schema_metadata({"huggingface": text}), Expect.ANY


TABLES = (_type, _type, _type, _twice, _missing, _nulls, _text, _text, _text, _many, _features)  # of any table

surface = Surface("parquet", make, mutate, named=("{folder}", "data", "image", "domain"))
