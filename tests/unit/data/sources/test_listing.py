"""Tables that name image files; the oracles are the folder source, pandas and Python's csv."""

import csv
import gzip
import json
import os
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metalora.config import DataConfig
from metalora.data import load_table
from metalora.data.load import find_table
from metalora.data.unlabelled import Unlabelled
from metalora.errors import UserError
from tests.unit.data.helpers import rows_of

PLACES = {"photo/cat": 12, "photo/dog": 9, "sketch/cat": 5, "sketch/dog": 7}
HEADER = ["path", "label", "domain"]


@pytest.fixture
def root(make_tree):
    """A tree of images."""
    return make_tree(PLACES)


@pytest.fixture
def rows(root):
    """Path, label and domain of its images, in no order."""
    paths = sorted(file.relative_to(root) for file in root.rglob("*.png"))
    found = [[str(path), path.parts[1], path.parts[0]] for path in paths]
    np.random.default_rng(0).shuffle(found)
    return found


def write_csv(file, rows, header=HEADER, **dialect):
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, **dialect).writerows([header, *rows])
    return file


def write_parquet(file, rows, header=HEADER):
    pd.DataFrame(rows, columns=header).to_parquet(file, row_group_size=7)
    return file


def load(file, **settings):
    return load_table(DataConfig(data=str(file), **settings))


@pytest.mark.parametrize("write", [write_csv, write_parquet])
@pytest.mark.parametrize("fractions", [{}, {"val_fraction": 0.3, "test_fraction": 0.4}])
def test_a_table_of_a_folders_files_is_the_folders_data_set_whatever_its_order(root, rows, write, fractions):
    file = write(root / f"images.{write.__name__.partition('_')[2]}", rows)
    table = load(file, **fractions)
    file.unlink()
    folder = load(root, **fractions)
    assert rows_of(table) == rows_of(folder)
    assert (table.labels, table.domains) == (folder.labels, folder.domains)


def test_given_splits_are_kept_and_missing_ones_drawn_as_of_folders(make_tree):
    root = make_tree({f"{split}/{label}": 6 for split in ("Train", "Validation") for label in "xy"})
    folder = load(root)
    paths = [path.relative_to(root) for path in sorted(root.rglob("*.png"))]
    table = load(
        write_csv(root / "a.csv", [[path, path.parts[1], path.parts[0]] for path in paths], ["file", "class", "split"])
    )
    assert rows_of(table) == rows_of(folder)
    assert table.domains == ("all",)
    assert set(table.split) == {0, 1, 2}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.csv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_of_every_dialect(root, rows, delimiter, encoding, name, end):
    odd = 'a, "b";\tc\nd\u00e9.png'
    (root / odd).write_bytes((root / rows[0][0]).read_bytes())
    rows[0][0] = odd
    file = write_csv(root / "plain.csv", rows, delimiter=delimiter, lineterminator=end)
    data = file.read_bytes().decode().encode(encoding)
    (root / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    table = load(root / name)
    read = pd.read_csv(root / name, sep=delimiter, encoding="utf-8-sig")  # the oracle
    assert sorted(table.store.files) == sorted(read["path"])
    label = dict(zip(read["path"], read["label"], strict=True))
    for row in range(len(table)):
        assert table.labels[table.label[row]] == label[table.store.files[row]]
    assert 'a, "b";\\x09c\\x0ad\u00e9.png' in table.id


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (["path", "label", "domain"], True),
        (["File_Name", " Class", "DOMAIN "], True),
        (["image", "target", "domain"], True),
        (["path", "label", "style"], False),
    ],
)
def test_columns_have_the_names_that_people_use(root, rows, header, chosen):
    table = load(write_csv(root / "a.csv", rows, header))
    assert table.domains == (("photo", "sketch") if chosen else ("all",))
    assert table.labels == ("cat", "dog")


def test_ids_and_absolute_paths_and_paths_above(root, rows, tmp_path):
    numbered = [
        [root / path if i % 2 else f"../tree/{path}", label, f"n{i}"] for i, (path, label, _) in enumerate(rows)
    ]
    (tmp_path / "other").mkdir()
    table = load(write_csv(tmp_path / "other" / "a.csv", numbered, ["path", "label", "id"]))
    by_id = {f"n{i}": (root / path).read_bytes() for i, (path, *_) in enumerate(rows)}
    assert {row["id"]: row["image"] for row in rows_of(table)} == by_id
    assert pickle.loads(pickle.dumps(table.store)).read(3) == table.read(3)


def test_one_file_is_in_one_split_and_may_be_in_several_domains(root, rows):
    twice = [*rows, *rows, *([path, label, "other"] for path, label, _ in rows)]
    table = load(write_csv(root / "a.csv", twice))
    assert len(table) == 3 * len(rows)
    met = {}
    for row in range(len(table)):
        place = table.id[row], table.domain[row]
        assert met.setdefault(place, table.split[row]) == table.split[row]


def test_excluded_domains_are_not_looked_at(root, rows):
    gone = [[f"gone/{path}" if domain == "sketch" else path, label, domain] for path, label, domain in rows]
    table = load(write_csv(root / "a.csv", gone), exclude_domains=("sketch",))
    assert table.domains == ("photo",)
    assert len(table) == 21


def test_missing_files_are_told_in_one_line_with_row_and_count(root, rows):
    rows[4][0], rows[9][0] = "gone.png", "gone/too.png"
    os.mkfifo(root / "pipe.png")
    rows[11][0], rows[12][0], rows[13][0] = "pipe.png", "photo", "a\0b.png"
    file = write_csv(root / "a.csv", rows)
    with pytest.raises(UserError) as error:
        load(file)
    said = rf"{file} row 6 names the image gone.png: No such file or directory (4 more like it); mend the table"
    assert str(error.value).startswith(said)
    with pytest.raises(UserError) as error:
        Unlabelled(file)
    assert str(error.value).startswith(said)
    kinds = [line.rpartition(": ")[2] for line in find_table(DataConfig(data=str(file))).missing]
    assert kinds == [*["No such file or directory"] * 2, "it is a pipe or a device", "it is a folder",
                     "no file can have this name"]  # fmt: skip


@pytest.mark.timeout(60)
def test_a_pipe_is_not_waited_for(root):
    os.mkfifo(root / "a.csv")
    for read in (load, Unlabelled):
        with pytest.raises(UserError, match=r"a\.csv' cannot be read: it is a pipe or a device"):
            read(root / "a.csv")


def change(row, column, value):
    def act(rows):
        rows[row][column] = value
        return write_rows(rows)

    return act


def write_rows(rows, header=HEADER):
    return "\n".join(",".join(map(str, row)) for row in [header, *rows]).encode()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (change(2, 0, "s3://bucket/a.png"), r"a\.csv row 4: 's3://bucket/a\.png' is a URI; wanted: the path of a file"),
        (change(2, 1, ""), r"a\.csv row 4: column 'label' is null"),
        (change(2, 0, ""), r"a\.csv row 4: column 'path' is null"),
        (change(2, 2, "x" * 1025), r"row 4: column 'domain' holds more than name_bytes = 1024"),
        (change(2, 2, "a,b"), r"row 4 has 4 fields, and the header 3"),
        (change(2, 2, '"a'), r"a\.csv' cannot be read: line 34: unexpected end of data"),
        (
            lambda rows: write_rows(rows, ["a", "label", "domain"]),
            r"has no column 'path' \(columns: a, label, domain\)",
        ),
        (lambda rows: write_rows(rows, ["path", "a", "b"]), r"has no column 'label' .*wanted: path, label and, if you"),
        (lambda rows: write_rows(rows, ["file", "image_path", "label"]), r"2 columns for the path: file, image_path"),
        (
            lambda rows: write_rows(rows, ["path", "label", "label"]),
            r"2 columns for the label: label, label; wanted: one",
        ),
        (lambda rows: write_rows(rows, ["path", "label", "split"]), r"row 2: split '.*' is unknown; accepted: train"),
        (lambda rows: b"", r"it has no header: its first line is empty"),
        (lambda rows: b"path,label\n", r"names no images: it has no rows"),
        (lambda rows: write_rows(rows).decode().encode("utf-16"), r"line 1 is not UTF-8; wanted: CSV that is saved"),
        (lambda rows: write_rows(rows) + b"\n\xff,a,b", r"line 35 is not UTF-8"),
        (lambda rows: b"path,label,domain\n" + b"a" * 200_000 + b",b,c", r"field larger than field limit"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(root, rows, make, message):
    (root / "a.csv").write_bytes(make(rows))
    with pytest.raises(UserError, match=message) as error:
        load(root / "a.csv")
    assert "a.csv" in str(error.value)


def test_limits_hold_and_a_packed_file_is_not_read_to_its_end(root, rows, monkeypatch):
    file = write_csv(root / "a.csv", rows)
    (root / "b.csv.gz").write_bytes(gzip.compress(b"path,label\n" + b"a,b\n" * 10_000_000))
    monkeypatch.setenv("METALORA_LIMITS", "table_bytes=100000 table_rows=33")
    assert len(load(file)) == 33
    monkeypatch.setenv("METALORA_LIMITS", "table_bytes=100000 table_rows=32")
    with pytest.raises(UserError, match=r"a\.csv: the table has more than table_rows = 32"):
        load(file)
    monkeypatch.setenv("METALORA_LIMITS", "table_bytes=100000")
    with pytest.raises(UserError, match=r"b\.csv\.gz' cannot be read: it has more than table_bytes = 100000 bytes"):
        load(root / "b.csv.gz")
    write_parquet(root / "c.parquet", rows)
    monkeypatch.setenv("METALORA_LIMITS", "table_bytes=100")
    with pytest.raises(UserError, match=r"c\.parquet: the table has more than table_bytes = 100"):
        load(root / "c.parquet")


def test_empty_lines_are_counted_but_passed_over(root, rows, monkeypatch):
    lines = write_rows(rows).split(b"\n")
    (root / "a.csv").write_bytes(b"\n".join([*lines[:3], b"", *lines[3:], b"", b""]))
    assert len(load(root / "a.csv")) == len(rows)
    (root / "a.csv").write_bytes(b"\n".join([*lines[:3], b"", b"gone,x,y"]))
    with pytest.raises(UserError, match=r"row 5 names the image gone"):
        load(root / "a.csv")


def test_many_rows_are_read_in_chunks(root, rows, monkeypatch):
    monkeypatch.setattr("metalora.data.sources.csv_rows._CHUNK", 4)
    assert len(load(write_csv(root / "a.csv", rows))) == len(rows)
    rows[17][0] = "gone"
    with pytest.raises(UserError, match=r"row 19 names the image gone"):
        load(write_csv(root / "a.csv", rows))


def numbered(rows):
    return [[path, ["cat", "dog"].index(label) * 9 + 1, domain] for path, label, domain in rows]


@pytest.mark.parametrize("write", [write_csv, write_parquet])
@pytest.mark.parametrize("way", ["column", "text", "list", "mapping", "none"])
def test_integers_get_their_names(root, rows, write, way):
    named, header = numbered(rows), HEADER
    if way == "column":
        named, header = [[*row, old[1]] for row, old in zip(named, rows, strict=True)], [*HEADER, "label_name"]
    elif way == "text":
        (root / "classes.txt").write_text("\ufeffa\ncat\n" + "\n".join("cdefghij") + "\ndog\n\n", encoding="utf-8")
    elif way == "list":
        (root / "classes.json").write_text(json.dumps(["a", "cat", *"cdefghij", "dog"]))
    elif way == "mapping":
        (root / "classes.json").write_text('{"1": "cat", "10": "dog"}')
    suffix = write.__name__.partition("_")[2]
    (root / "tables").mkdir()
    table = load(write(root / f"x.{suffix}", named, header))
    assert table.labels == (("1", "10") if way == "none" else ("cat", "dog"))
    wanted = {path: label for path, label, _ in rows}
    if way != "none":
        assert {row["id"]: row["label"] for row in rows_of(table)} == wanted


@pytest.mark.parametrize("way", ["column", "text", "mapping", "list"])
def test_integers_beside_images_in_parquet_get_their_names_too(make_rows, tmp_path, way):
    rows = [{**row, "label": "xy".index(row["label"])} for row in make_rows()]
    if way == "column":
        rows = [{**row, "class_name": ("ex", "why")[row["label"]]} for row in rows]
    elif way == "text":
        (tmp_path / "classes.txt").write_text("ex\nwhy\n")
    else:
        (tmp_path / "classes.json").write_text('["ex", "why"]' if way == "list" else '{"0": "ex", "1": "why"}')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    table = load(tmp_path / "a.parquet")
    assert table.labels == ("ex", "why")
    assert [row["label"] for row in rows_of(table)] == [("ex", "why")[row["label"]] for row in rows]
    folder = load(tmp_path)
    assert (folder.labels, folder.ignored) == (table.labels, ())


def test_other_names_are_another_data_set_and_words_need_no_names(make_rows, tmp_path):
    rows = [{**row, "label": "xy".index(row["label"])} for row in make_rows()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").labels == ("0", "1")
    (tmp_path / "classes.txt").write_text("ex\nwhy\n")
    assert load(tmp_path / "a.parquet").labels == ("ex", "why")
    (tmp_path / "classes.txt").write_text("ex\nzed\n")
    assert load(tmp_path / "a.parquet").labels == ("ex", "zed")
    pq.write_table(pa.Table.from_pylist(make_rows()), tmp_path / "a.parquet")
    (tmp_path / "classes.txt").write_text("\n\n")
    assert load(tmp_path / "a.parquet").labels == ("x", "y")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.txt", "a\nb", r"row \d+: label 10 has no name; wanted: 0 to 1"),
        ("classes.txt", "a\nb\na", r"classes\.txt': 'a' names the labels 0 and 2|'a' names the labels 0 and 2"),
        ("classes.txt", "a\n\nb", r"the name of label 1 has 0 characters"),
        ("classes.txt", "\n", r"it names no class"),
        ("classes.txt", b"\xff", r"classes\.txt.*cannot be read"),
        ("classes.json", "{}", r"it names no class"),
        ("classes.json", '{"1": "a", "x": "b"}', r"the key 'x' is no integer"),
        ("classes.json", '{"1": "a", "7": "b"}', r"label 10 has no name; wanted: one of the 2 that have names"),
        ("classes.json", "[1, 2]", r"classes\.json"),
        ("classes.json", "[" * 10**5, r"classes\.json"),
    ],
)
def test_names_that_do_not_fit_are_refused_in_one_line(root, rows, name, text, message):
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load(write_csv(root / "a.csv", numbered(rows)))


def test_a_label_has_one_name_and_a_name_one_label(root, rows):
    header = [*HEADER, "label_name"]
    named = [[*row, old[1]] for row, old in zip(numbered(rows), rows, strict=True)]
    changed = [row[:] for row in named]
    changed[20][3] = "third"
    with pytest.raises(UserError, match=r"row 22: label '10?' is named 'third', and '(cat|dog)' before; wanted: one"):
        load(write_csv(root / "a.csv", changed, header))
    named[20][1] = 77
    with pytest.raises(UserError, match=r"row 22: '(cat|dog)' names label '77', and '10?' before; wanted: one"):
        load(write_csv(root / "a.csv", named, header))
    (root / "classes.txt").write_text("a")
    (root / "classes.json").write_text("[]")
    with pytest.raises(UserError, match=r"holds classes\.txt and classes\.json, which both name the classes"):
        load(write_csv(root / "a.csv", numbered(rows)))


def test_a_folder_of_parquet_names_files_and_paths_tell_domains(root, rows):
    for domain in ("photo", "sketch"):
        (root.parent / "tables" / f"domain={domain}").mkdir(parents=True)
        mine = [[f"../tree/{path}", label] for path, label, met in rows if met == domain]
        write_parquet(root.parent / "tables" / f"domain={domain}" / "part-0.parquet", mine, ["file_name", "label"])
    table = load(root.parent / "tables")
    assert [row["image"] for row in rows_of(table)] == [row["image"] for row in rows_of(load(root))]
    assert table.domains == ("photo", "sketch")
    with pytest.raises(UserError, match=r"names image files, and is not local|does not exist|is CSV and not local"):
        load("s3://no-such-bucket/a.csv")
    write_parquet(
        root.parent / "tables" / "domain=photo" / "part-1.parquet", [["x", "y", "train"]], ["path", "label", "split"]
    )
    with pytest.raises(UserError, match=r"some files of .*tables have a column 'split', others do not"):
        load(root.parent / "tables")


def test_images_to_predict_from_may_be_named_by_a_table(root, rows):
    bare = [[path] for path, *_ in rows]
    wanted = [(path, (root / path).read_bytes()) for path, *_ in rows]
    assert list(Unlabelled(write_csv(root / "a.csv", bare, ["path"]))) == wanted
    assert list(Unlabelled(write_parquet(root / "a.parquet", bare, ["file_name"]))) == wanted
    with_ids = [[f"n{i}", path] for i, (path,) in enumerate(bare)]
    images = Unlabelled(write_csv(root / "a.csv", with_ids, ["id", "image"]))
    assert [name for name, _ in images] == [f"n{i}" for i in range(len(rows))]
    before = images.fingerprint
    (root / rows[0][0]).write_bytes(b"other")
    assert Unlabelled(root / "a.csv").fingerprint != before
