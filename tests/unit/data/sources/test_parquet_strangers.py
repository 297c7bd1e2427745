"""Parquet files that are small and become large, or are of no sound form."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metalora.data.sources.pages import read_pages
from metalora.data.sources.parquet import load_parquet
from metalora.errors import UserError
from tests.unit.data.helpers import rows_of

MIB = 2**20
LARGE = bytes(10 * MIB)


def repeated(value, count):
    """A column of one value, written once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value]))


@pytest.fixture
def write_columns(tmp_path):
    def write(count, settings=None, metadata=None, **columns):
        texts = {"label": "a", "domain": "b", "split": "train"}
        table = pa.table(
            {"image": repeated(b"x", count), **{n: repeated(t, count) for n, t in texts.items()}} | columns
        )
        path = tmp_path / "data.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path, **{"compression": "zstd", **(settings or {})})
        return str(path)

    return write


def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("image", "settings"),
    [
        (repeated(LARGE, 60), {}),
        (pa.array([LARGE] * 20), {"use_dictionary": False}),
        (pa.array([LARGE] * 20), {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}}),
    ],
)
def test_a_large_image_named_by_many_rows_is_never_held_so_often(write_columns, image, settings, monkeypatch):
    path = write_columns(len(image), settings, image=image)
    monkeypatch.setenv("METALORA_LIMITS", f"rows_bytes={240 * MIB}")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = peak()
    table = load_parquet(path)
    assert peak() - before < 500 * MIB
    assert len(table) == len(image)
    assert (table.store.copy / "images.bin").stat().st_size == len(LARGE)


@pytest.mark.parametrize(
    ("count", "columns", "message"),
    [
        (4, {"image": pa.array([LARGE] * 4)}, r"column 'image' has a page or value of 419\d{5} bytes, decompressed"),
        (1, {"image": pa.nulls(1, pa.binary(33 * MIB))}, "a page or value of 34603008 bytes"),
        (4 * 10**4, {}, r"hold the same images or texts again and again"),
        (80, {"image": repeated(LARGE, 80)}, r"hold the same images or texts again and again"),
        (2, {"label": repeated("a" * MIB, 2)}, "row 0: column 'label' holds more than name_bytes = 1024 bytes"),
        (2, {"id": pa.array(["a", "b" * 1025])}, "row 1: column 'id' holds more than name_bytes = 1024 bytes"),
        (2, {f"c{i}" * 99: pa.array([1, 2]) for i in range(99)} | {"image": pa.array([1, 2])}, "is of type int64"),
    ],
)
def test_what_becomes_too_large_is_refused(write_columns, count, columns, message, monkeypatch):
    monkeypatch.setenv("METALORA_LIMITS", f"rows_bytes={32 * MIB}")
    settings = {"use_dictionary": [name for name in ("image", "label", "domain", "split") if name not in columns]}
    if isinstance(columns.get("image"), pa.DictionaryArray):
        settings = {}
    with pytest.raises(UserError, match=message) as error:
        load_parquet(write_columns(count, settings, **columns))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "said",
    [
        b"[" * 10**5,
        b'{"info":' * 10**5,
        b"[" + b" " * 2**23,
        b'{"info":{"features":{"label":{"names":["%s"]}}}}' % (b"x" * 1025),
    ],
)
def test_metadata_without_measure_are_refused(write_columns, said):
    with pytest.raises(
        UserError, match=r"Parquet file .*data\.parquet cannot be read: (it is nested|its metadata|the class name)"
    ):
        load_parquet(write_columns(2, metadata={"huggingface": said}))


@pytest.mark.parametrize(
    "said", [b"\xff", b'{"info":{"features":NaN}}', b"9" * 5000, json.dumps({"info": []}).encode()]
)
def test_metadata_of_another_form_say_nothing(write_columns, said):
    assert load_parquet(write_columns(2, metadata={"huggingface": said})).labels == ("a",)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_pages_are_what_was_written(tmp_path, version, dictionary):
    generator = np.random.default_rng(0)
    values = [generator.bytes(generator.integers(0, 2000)) for _ in range(3000)]
    path = tmp_path / "x.parquet"
    settings = {
        "data_page_version": version,
        "use_dictionary": dictionary,
        "data_page_size": 2**16,
        "write_batch_size": 16,
    }
    pq.write_table(pa.table({"image": values}), path, row_group_size=1000, compression="none", **settings)
    metadata = pq.read_metadata(path)
    with pa.OSFile(str(path)) as handle:
        groups = [list(read_pages(handle, metadata.row_group(i).column(0))) for i in range(3)]
    for group, pages in enumerate(groups):
        assert sum(page.values for page in pages if not page.repeats) == 1000
        chunk, plain = metadata.row_group(group).column(0), sum(4 + len(v) for v in values[1000 * group :][:1000])
        assert plain < sum(page.size for page in pages) < min(plain + 2**14, chunk.total_uncompressed_size)
        assert [page.repeats for page in pages] == [dictionary] + [False] * (len(pages) - 1)
        assert len(pages) > 10 or dictionary


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (b"\x15" + b"\xff" * 2**20, ValueError),  # a number without end
        (b"\x1c" * 2**16, RecursionError),  # structs within structs
        (b"\x19" * 100, ValueError),  # a list
        (b"\x15\x00\x15\x01\x15\x00\x00", ValueError),  # a negative size
        (b"\x15\x00\x00", KeyError),  # no size
        (b"", ValueError),
    ],
)
def test_headers_that_are_none_are_refused_at_once(header, error):
    chunk = SimpleNamespace(
        data_page_offset=0, dictionary_page_offset=None, has_dictionary_page=False, total_compressed_size=2**40
    )
    with pytest.raises(error):
        list(read_pages(pa.BufferReader(header), chunk))


def test_mutants_are_read_or_refused_in_one_line(make_rows, write):
    path = Path(write(make_rows()))
    whole, generator, read, refused = path.read_bytes(), random.Random(0), 0, []
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(data))
            data[place] = generator.choice([0, 1, 127, 128, 255, data[place] ^ 1 << generator.randrange(8)])
        path.write_bytes(
            data[: generator.choice([len(data), generator.randrange(len(data))])] + generator.choice([b"", data[-8:]])
        )
        try:
            rows_of(load_parquet(str(path)))
            read += 1
        except UserError as error:
            refused.append(str(error))
    assert read
    assert refused
    assert not any("\n" in message for message in refused)
