"""The copy of Parquet's images in the cache, damaged."""

import hashlib
import logging
import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metalora.data.sources.parquet import load_parquet
from metalora.data.table import hash_of
from metalora.errors import UserError
from tests.unit.data.helpers import rows_of


@pytest.fixture
def rows(make_rows):
    return make_rows()


@pytest.fixture
def path(write, rows):
    return write(rows)


@pytest.fixture
def copy(path):
    return load_parquet(path).store.copy


def flip(file: Path, generator: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    file.write_bytes(data)


def cut(file: Path, generator: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: generator.randrange(file.stat().st_size)])


def lose(file: Path, generator: random.Random) -> None:
    file.unlink()


def swap(file: Path, generator: random.Random) -> None:
    data = file.read_bytes()
    half = len(data) // 2
    file.write_bytes(data[half:] + data[:half])


def test_the_fingerprint_is_that_of_all_columns(path, rows):
    columns = [[row[name] for row in rows] for name in ("label", "domain", "split", "id")]
    digests = [hashlib.blake2b(row["image"], digest_size=16).digest() for row in rows]
    assert load_parquet(path).fingerprint == hash_of([value for column in (*columns, digests) for value in column])


def test_equal_images_are_stored_once(write, rows):
    copy = load_parquet(
        write([row | {"image": rows[number % 3]["image"]} for number, row in enumerate(rows)])
    ).store.copy
    assert (copy / "images.bin").read_bytes() == b"".join(row["image"] for row in rows[:3])


@pytest.mark.parametrize("file", ["images.bin", "index.arrow", "SHA256SUMS"])
@pytest.mark.parametrize("damage", [flip, cut, lose, swap])
def test_a_damaged_copy_is_made_anew(path, rows, copy, file, damage):
    generator = random.Random(f"{file} {damage.__name__}")
    whole = {name: (copy / name).read_bytes() for name in ("images.bin", "index.arrow", "SHA256SUMS")}
    for _ in range(10 if damage in (flip, cut) else 1):
        damage(copy / file, generator)
        assert rows_of(load_parquet(path)) == rows
        assert {name: (copy / name).read_bytes() for name in whole} == whole


def test_damage_that_comes_after_loading_is_noticed(path, rows, copy, caplog):
    table = load_parquet(path)
    table.read(0)
    (copy / "images.bin").write_bytes(bytes((copy / "images.bin").stat().st_size))
    with caplog.at_level(logging.WARNING):
        assert rows_of(table) == rows
    assert [record.getMessage() for record in caplog.records] == [
        f"{copy.name} in the cache is damaged (image {path} row 0 (id i0)), and is made anew"
    ]


def test_all_who_meet_the_damage_at_once_have_it_mended_once(path, rows, copy, caplog):
    stores = [pickle.loads(pickle.dumps(load_parquet(path).store)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for damage in (flip, cut, lose):
            damage(copy / "images.bin", random.Random(0))
            caplog.clear()
            read = list(pool.map(lambda store: [store.read(row) for row in range(len(rows))], stores))
            assert read == [[row["image"] for row in rows]] * 8
            assert len(caplog.records) == 1


def test_a_lost_copy_is_made_anew_by_a_worker(path, rows, copy):
    store = pickle.loads(pickle.dumps(load_parquet(path).store))
    shutil.rmtree(copy)
    assert [store.read(row) for row in range(len(rows))] == [row["image"] for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"data '.*data\.parquet' does not exist"),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"x"),
            r"copy of .*data\.parquet in the cache .* has changed",
        ),
    ],
)
def test_a_damaged_copy_of_what_is_no_more_is_an_error(path, copy, change, message):
    table = load_parquet(path)
    (copy / "images.bin").unlink()
    change(Path(path))
    with pytest.raises(UserError, match=message):
        table.read(0)


def test_a_copy_that_stays_damaged_is_an_error(path, copy, monkeypatch):
    table = load_parquet(path)
    table.read(0)
    (copy / "images.bin").write_bytes(b"")
    monkeypatch.setattr(
        "metalora.data.sources.parquet._write_copy",
        lambda source, folder: shutil.copytree(copy, folder, dirs_exist_ok=True),
    )
    with pytest.raises(
        UserError, match=r"image .* row 3 \(id i3\) is damaged in the cache .*, though that was made anew"
    ):
        table.read(3)


def test_a_cache_that_cannot_be_written_is_named(path, copy, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    shutil.rmtree(copy)
    monkeypatch.setattr("metalora.data.sources.parquet._write_copy", full)
    with pytest.raises(UserError, match=r"images-\w+ cannot be written \(No space left on device; set METALORA_CACHE"):
        load_parquet(path)
