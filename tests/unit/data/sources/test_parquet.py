import os
import pickle
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metalora.config import DataConfig
from metalora.data import load_table
from metalora.data.sources import parquet_files
from metalora.data.sources.parquet import load_parquet
from metalora.errors import UserError
from tests.unit.data.helpers import rows_of


def test_round_trip_of_a_file(make_rows, write):
    rows = make_rows()
    table = load_table(DataConfig(data=write(rows)))
    assert rows_of(table) == rows
    assert (table.labels, table.domains, table.skipped) == (("x", "y"), ("a", "b"), ())
    assert [array.dtype for array in (table.label, table.domain, table.split)] == [
        np.int64,
        np.int64,
        np.int8,
    ]
    assert table.rows("val").tolist() == [4, 11, 18, 25]
    assert table.rows("val").dtype == np.int64


def test_round_trip_of_more_rows_than_a_record_batch(make_rows, write):
    rows = make_rows("".join(map(chr, range(97, 123))), "xyz")
    assert len(rows) > 512
    assert rows_of(load_parquet(write(rows))) == rows


def test_a_folder_of_files_is_read_in_the_order_of_their_names(make_rows, write, tmp_path):
    rows = make_rows()
    write(rows[9:], "folder/b.parquet")
    write(rows[:9], "folder/a.parquet")
    (tmp_path / "folder" / "_SUCCESS").touch()
    (tmp_path / "folder" / ".c.parquet").write_bytes(b"half written")
    table = load_table(DataConfig(data=str(tmp_path / "folder")))
    assert rows_of(table) == rows
    assert table.name(9) == f"{tmp_path}/folder/b.parquet row 0 (id i9)"


def test_a_uri(make_rows, write, tmp_path):
    rows = make_rows()
    write(rows, "folder/a.parquet")
    for place in ("folder", "folder/a.parquet"):
        assert rows_of(load_table(DataConfig(data=f"file://{tmp_path}/{place}"))) == rows


@pytest.mark.parametrize("named", [{"domain": "domain", "split": "split"}, {"domain": "domain", "split": ""}])
def test_partitioned_folders_tell_columns(make_rows, tmp_path, named):
    rows = [row | {"domain": {"a": "a b/é", "b": "b"}[row["domain"]]} for row in make_rows()]
    for number, row in enumerate(rows):
        place = tmp_path / "data"
        for name, shown in named.items():
            folder = quote(row[name], safe="") if name == "domain" else {"val": "Validation"}.get(row[name], row[name])
            place = place / (f"{shown}={folder}" if shown else folder)
        place.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in row.items() if name not in named}
        pq.write_table(pa.Table.from_pylist([kept]), place / f"part-{number}.parquet")
    assert (
        sorted(rows_of(load_table(DataConfig(data=str(tmp_path / "data")))), key=lambda row: int(row["id"][1:])) == rows
    )
    one = place / f"part-{number}.parquet"
    if named["split"]:
        assert rows_of(load_parquet(str(one))) == rows[-1:]


def test_a_tree_of_images_with_a_stray_parquet_file_is_a_tree(make_tree, make_rows, write):
    root = make_tree({"a/x": 4, "a/y": 4})
    write(make_rows(), "tree/a/x/features.parquet")
    assert load_table(DataConfig(data=str(root))).ignored == ("a/x/features.parquet",)


def test_a_name_that_is_not_utf8_is_named_in_one_line(make_rows, write, tmp_path):
    write(make_rows(), "folder/a.parquet")
    (tmp_path / "folder" / os.fsdecode(b"b\xff.parquet")).write_bytes(b"")
    for data in (tmp_path / "folder", tmp_path / "folder" / os.fsdecode(b"b\xff.parquet")):
        with pytest.raises(UserError, match=r"data '.*' cannot be read: the name .*b\\.*ff\.parquet' is not UTF-8"):
            load_table(DataConfig(data=str(data)))


def test_links_that_lose_or_repeat_files_are_named(make_rows, write, tmp_path):
    write(make_rows(), "folder/a.parquet")
    (tmp_path / "folder" / "lost.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"lost\.parquet: it is a link to what is not there"):
        load_parquet(str(tmp_path / "folder"))
    (tmp_path / "folder" / "lost.parquet").unlink()
    (tmp_path / "folder" / "circle").symlink_to(tmp_path / "folder")
    with pytest.raises(UserError, match=r"holds one file or folder twice, by a link: \. and circle"):
        load_parquet(str(tmp_path / "folder"))


def test_large_images_are_read_in_small_batches(make_rows, write, monkeypatch):
    rows = make_rows()
    sizes, read = [], parquet_files.read_images

    def count(column, *place):
        sizes.append(len(column))
        return read(column, *place)

    monkeypatch.setattr(parquet_files, "read_images", count)
    monkeypatch.setenv("METALORA_LIMITS", "rows_bytes=600")
    assert rows_of(load_parquet(write(rows))) == rows
    assert max(sizes) * len(rows[0]["image"]) <= 600


def test_ids_may_be_integers_or_absent_and_other_columns_are_ignored(make_rows, write):
    numbered = [row | {"id": i * 10, "width": 4.0} for i, row in enumerate(make_rows())]
    assert load_parquet(write(numbered, "n.parquet")).id[:2].tolist() == ["0", "10"]
    bare = [{name: value for name, value in row.items() if name != "id"} for row in make_rows()]
    table = load_parquet(write(bare, "bare.parquet"))
    assert table.id[:2].tolist() == ["bare.parquet:0", "bare.parquet:1"]
    assert table.name(1).endswith("/bare.parquet row 1")


def test_the_fingerprint_follows_the_content_not_the_place(make_rows, write, png):
    rows = make_rows()
    before = load_parquet(write(rows, "one.parquet")).fingerprint
    assert load_parquet(write(rows, "two.parquet")).fingerprint == before
    for change in ({"image": png(99)}, {"label": "y"}, {"domain": "b"}, {"split": "test"}, {"id": "new"}):
        changed = [rows[0] | change, *rows[1:]]
        assert load_parquet(write(changed, "three.parquet")).fingerprint != before


def test_the_same_file_has_an_id_of_its_own_in_every_folder_that_is_read(make_rows, write, tmp_path):
    bare = [{name: value for name, value in row.items() if name != "id"} for row in make_rows()]
    (tmp_path / "folder").mkdir()
    write(bare, "folder/below/a.parquet")
    assert load_parquet(str(tmp_path / "folder" / "below")).id[0] == "a.parquet:0"
    assert load_parquet(str(tmp_path / "folder")).id[0] == "below/a.parquet:0"


def test_a_file_without_rows_says_nothing(make_rows, write, tmp_path):
    write(make_rows(), "folder/a.parquet")
    pq.write_table(pa.table({"image": pa.nulls(0)}), tmp_path / "folder" / "b.parquet")
    assert rows_of(load_parquet(str(tmp_path / "folder"))) == make_rows()


def test_a_changed_file_is_read_anew(make_rows, write):
    rows = make_rows()
    load_parquet(write(rows))
    changed = [*rows[:-1], rows[-1] | {"label": "a longer name"}]
    assert rows_of(load_parquet(write(changed))) == changed


def test_the_images_are_copied_once(make_rows, write, monkeypatch):
    path = write(make_rows())
    first = load_parquet(path)
    monkeypatch.setattr(pq, "ParquetFile", None)
    assert rows_of(load_parquet(path)) == rows_of(first)


def test_a_store_pickles_without_images_also_after_reading(make_rows, write):
    table = load_parquet(write(make_rows()))
    image = table.read(3)
    pickled = pickle.dumps(table.store)
    assert len(pickled) < 500
    assert pickle.loads(pickled).read(3) == image


@pytest.mark.parametrize("column", ["image", "label", "domain", "split"])
def test_a_missing_column_is_named(make_rows, write, column):
    rows = [{name: value for name, value in row.items() if name != column} for row in make_rows()]
    with pytest.raises(UserError, match=rf"data\.parquet has no column '{column}' \(columns: .*\); wanted: image"):
        load_parquet(write(rows))


@pytest.mark.parametrize("column", ["image", "label", "domain", "split", "id"])
def test_a_null_is_named_and_leaves_no_cache(make_rows, write, column, empty_cache):
    rows = make_rows()
    rows[17][column] = None
    path = write(rows)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"data\.parquet row 17: column '{column}' is null"):
            load_parquet(path)
    assert not list((empty_cache / "data").glob("[!.]*"))


def test_an_unknown_split_is_named(make_rows, write):
    rows = make_rows()
    rows[12]["split"] = "valid"
    with pytest.raises(UserError, match=r"row 12: split 'valid' is unknown; accepted: train, val, test"):
        load_parquet(write(rows))


def test_no_rows(make_rows, tmp_path):
    empty = pa.Table.from_pylist(make_rows()).slice(0, 0)
    pq.write_table(empty, tmp_path / "empty.parquet")
    with pytest.raises(UserError, match=r"empty\.parquet holds no images"):
        load_parquet(str(tmp_path / "empty.parquet"))


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_a_broken_file_is_named_in_one_line(make_rows, write, damage):
    path = Path(write(make_rows()))
    whole = path.read_bytes()
    path.write_bytes({"garbage": b"no Parquet " * 50, "truncated": whole[:-100], "empty": b""}[damage])
    with pytest.raises(UserError, match=r"Parquet file .*data\.parquet cannot be read: .+$") as caught:
        load_parquet(str(path))
    assert "\n" not in str(caught.value)


def test_damage_inside_a_file_is_named(make_rows, write):
    path = Path(write(make_rows()))
    whole = bytearray(path.read_bytes())
    whole[4:400] = b"\xff" * 396
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"Parquet file .*data\.parquet cannot be read: "):
        load_parquet(str(path))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("foo://bucket/data", "data 'foo://bucket/data' cannot be read: "),
        ("file:///no/such/place", "data 'file:///no/such/place' does not exist"),
    ],
)
def test_a_bad_uri_is_named(uri, message):
    with pytest.raises(UserError, match=message):
        load_table(DataConfig(data=uri))


def test_a_uri_of_a_folder_without_parquet_is_named(make_tree):
    root = make_tree({"a/x": 2})
    with pytest.raises(UserError, match=r"holds no \.parquet files"):
        load_table(DataConfig(data=f"file://{root}"))
