import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metalora.config import DataConfig
from metalora.data import load_table
from metalora.data.sources.parquet import load_parquet
from metalora.errors import UserError
from tests.unit.data.helpers import rows_of


def test_column_types_that_pandas_and_arrow_write(make_rows, write, tmp_path):
    rows = make_rows()
    expected = load_parquet(write(rows))
    frame = pd.DataFrame(rows).astype({"label": "category", "domain": "category"})
    frame.to_parquet(tmp_path / "pandas.parquet")
    plain = pa.Table.from_pylist(rows)
    large = plain.cast(
        pa.schema([(f.name, {"image": pa.large_binary()}.get(f.name, pa.large_string())) for f in plain.schema])
    )
    pq.write_table(large, tmp_path / "large.parquet")
    dictionary = pa.table({name: plain[name].dictionary_encode() for name in plain.column_names})
    pq.write_table(dictionary, tmp_path / "dictionary.parquet")
    for name in ("pandas", "large", "dictionary"):
        table = load_parquet(str(tmp_path / f"{name}.parquet"))
        assert rows_of(table) == rows
        assert table.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    "text", [pa.string(), pa.string_view(), pa.large_string(), pa.binary(), pa.binary_view(), pa.binary(1)]
)
@pytest.mark.parametrize("image", [pa.binary_view(), pa.large_binary(), None])
def test_text_and_images_of_every_type(make_rows, tmp_path, text, image):
    rows = [row | {"image": make_rows()[0]["image"]} for row in make_rows()] if image is None else make_rows()
    image = image or pa.binary(len(rows[0]["image"]))
    columns = {name: pa.array([row[name] for row in rows]) for name in rows[0]}
    columns["image"] = columns["image"].cast(image)
    for name in ("label", "domain"):
        columns[name] = columns[name].cast(text) if text != pa.binary(1) else columns[name].cast(pa.binary()).cast(text)
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    assert rows_of(load_parquet(str(tmp_path / "data.parquet"))) == rows


def test_extension_types_are_what_they_store(make_rows, tmp_path):
    rows = make_rows()
    plain = pa.Table.from_pylist(rows)
    text = plain["label"].cast(pa.json_())
    number = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([int(row["label"] == "x") for row in rows], pa.int8()))
    for label, expected in ((text, ("x", "y")), (number, ("0", "1"))):
        pq.write_table(plain.set_column(1, "label", label), tmp_path / "data.parquet")
        assert load_parquet(str(tmp_path / "data.parquet")).labels == expected


def test_each_file_of_a_folder_may_have_types_of_its_own(make_rows, write, tmp_path):
    rows = make_rows()
    write(rows[:14], "folder/a.parquet")
    other = pa.Table.from_pylist(rows[14:])
    other = other.set_column(1, "label", other["label"].dictionary_encode()).cast(
        pa.schema([other.schema.field(0), ("label", pa.dictionary(pa.int8(), pa.string())), *list(other.schema)[2:]])
    )
    pq.write_table(other, tmp_path / "folder" / "b.parquet")
    assert rows_of(load_parquet(str(tmp_path / "folder"))) == rows


def test_labels_and_domains_that_are_spelled_in_two_ways_are_one(make_rows, write):
    spelled = {"a": "Caf\u00e9", "b": "Cafe\u0301"}
    rows = [row | {"domain": spelled[row["domain"]]} for row in make_rows()]
    rows += [row | {"domain": "c"} for row in make_rows("a")]
    path = write(rows)
    assert load_table(DataConfig(data=path)).domains == ("Caf\u00e9", "c")
    assert load_table(DataConfig(data=path, exclude_domains=("Cafe\u0301",))).domains == ("c",)


def test_integer_labels_without_names_are_their_digits(make_rows, write):
    numbers = {"x": 3, "y": 10}
    rows = [row | {"label": numbers[row["label"]]} for row in make_rows()]
    assert load_parquet(write(rows)).labels == ("10", "3")


@pytest.mark.parametrize("column", ["label", "domain", "split", "id"])
def test_text_that_is_not_utf8_is_named(make_rows, tmp_path, column):
    rows = make_rows()
    data = pa.Table.from_pylist(rows)
    values = [row[column].encode() for row in rows]
    values[17] = b"caf\xe9"
    raw = pa.array(values)
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())  # as broken writers do
    for kind in (raw, text):
        pq.write_table(data.set_column(data.schema.names.index(column), column, kind), tmp_path / "data.parquet")
        with pytest.raises(
            UserError, match=rf"data\.parquet row 17: column '{column}' holds b'caf\\xe9', which is not"
        ):
            load_parquet(str(tmp_path / "data.parquet"))


HUGGING_FACE = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"]}}}}


@pytest.fixture
def write_hugging_face(make_rows, tmp_path):
    """Write files as Hugging Face's datasets do: no domains, the split in the file's name."""

    def write_splits(change=lambda row: row, metadata=HUGGING_FACE):
        for name, split in {"train": "train", "validation": "val", "test": "test"}.items():
            rows = [
                change({"image": {"bytes": row["image"], "path": f"{i}.png"}, "label": "xy".index(row["label"])})
                for i, row in enumerate(make_rows("a"))
                if row["split"] == split
            ]
            data = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(metadata)})
            (tmp_path / "hf" / "data").mkdir(parents=True, exist_ok=True)
            pq.write_table(data, tmp_path / "hf" / "data" / f"{name}-00000-of-00001.parquet")
        (tmp_path / "hf" / "README.md").touch()
        return str(tmp_path / "hf")

    return write_splits


def test_files_of_hugging_face(write_hugging_face, make_rows):
    table = load_table(DataConfig(data=write_hugging_face()))
    assert (table.labels, table.domains, table.ignored) == (("cat", "dog"), ("all",), ("README.md",))
    expected = {(row["image"], "cat" if row["label"] == "x" else "dog", row["split"]) for row in make_rows("a")}
    assert {(row["image"], row["label"], row["split"]) for row in rows_of(table)} == expected
    assert table.id[0] == "data/test-00000-of-00001.parquet:0"


def test_metadata_without_class_names_leave_numbers(write_hugging_face):
    for metadata in ({}, [], {"info": None}, {"info": {"features": {"label": None, "image": []}}}):
        assert load_table(DataConfig(data=write_hugging_face(metadata=metadata))).labels == ("0", "1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"label": -1}, "test-.* row 0: column 'label' is -1, which has no name; wanted: 0 to 1"),
        (lambda row: row | {"label": 2}, "test-.* row 0: column 'label' is 2, which has no name; wanted: 0 to 1"),
        (
            lambda row: row | {"image": row["image"] | {"bytes": b"" if row["label"] else None}},
            r"test-.* row 0: column 'image' is the path '5\.png' without the image's bytes",
        ),
        (lambda row: row | {"image": None if not row["label"] else row["image"]}, "column 'image' is null"),
    ],
)
def test_rows_of_hugging_face_that_say_nothing_are_named(write_hugging_face, change, message):
    with pytest.raises(UserError, match=message):
        load_parquet(write_hugging_face(change))


def test_a_column_that_is_there_twice_is_named(make_rows, tmp_path):
    data = pa.Table.from_pylist(make_rows())
    pq.write_table(data.append_column("label", data["label"]), tmp_path / "data.parquet")
    with pytest.raises(UserError, match=r"data\.parquet has 2 columns 'label'; wanted: one"):
        load_parquet(str(tmp_path / "data.parquet"))


@pytest.mark.parametrize(
    ("column", "value", "met"),
    [
        ("image", "path.png", "string"),
        ("image", {"path": ""}, "struct"),
        ("image", [1, 2], "list"),
        ("label", 3.0, "double"),
        ("domain", ["a"], "list"),
        ("domain", {"bytes": b"a"}, "struct"),
        ("split", True, "bool"),
        ("id", 0.5, "double"),
    ],
)
def test_a_column_of_a_wrong_type_is_named(make_rows, write, column, value, met):
    rows = [row | {column: value} for row in make_rows()]
    with pytest.raises(UserError, match=rf"data\.parquet: column '{column}' is of type {met}.* wanted"):
        load_parquet(write(rows))
