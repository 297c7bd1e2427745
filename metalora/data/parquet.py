"""Parquet files in the one schema, local or on any file system pyarrow knows.

Parquet has no random access, so its images are copied once into an Arrow IPC file in the cache, a
record batch at a time, and read from there through a memory map.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.ipc
import pyarrow.parquet as pq

from metalora.data.table import SPLITS, ImageTable, encode, hash_of
from metalora.errors import UserError
from metalora.files import atomic_file, cache_dir

_COPY_VERSION = "1"
_BATCH_ROWS = 256
_COPY_SCHEMA = pa.schema(
    {
        "image": pa.large_binary(),
        "label": pa.large_string(),
        "domain": pa.large_string(),
        "split": pa.large_string(),
        "id": pa.large_string(),
        "name": pa.large_string(),  # for error messages
        "digest": pa.binary(16),  # of the image
    }
)
_WANTED = (
    "wanted: image (encoded bytes), label, domain (strings), split (train, val or test) "
    "and, if you like, id (string or integer)"
)


@dataclass(frozen=True)
class ParquetStore:
    """Reads images from the Arrow copy; opened where and when it is first read."""

    copy: Path

    @cached_property
    def _table(self) -> Any:
        return _read_copy(self.copy, ["image", "name"])

    def __getstate__(self) -> dict[str, Path]:
        # the map is opened anew in each process
        return {"copy": self.copy}

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row."""
        image: bytes = self._table["image"][row].as_py()
        return image

    def name(self, row: int) -> str:
        """Return the row's file, number and id."""
        name: str = self._table["name"][row].as_py()
        return name


def load_parquet(path: str) -> ImageTable:
    """Read a Parquet file, or all the ``*.parquet`` files directly in a folder.

    Columns: ``image`` (encoded bytes), ``label``, ``domain`` and ``split`` (strings; train, val or
    test), ``id`` (string or integer; default: file and row). Others are ignored.

    Args:
        path: A local path, or a URI that pyarrow knows (s3://, gs://, file://).

    Raises:
        UserError: nothing there, not a Parquet file, a column is missing or of another type, a null,
            an unknown split.
    """
    filesystem, files = _find(path)
    stamps = [str(stamp) for file in files for stamp in (file.path, file.size, file.mtime_ns)]
    copy = cache_dir("data") / f"images-{hash_of([_COPY_VERSION, filesystem.type_name, *stamps])}.arrow"
    if not copy.exists():
        _make_copy(filesystem, [file.path for file in files], copy)
    table = _table_of(copy)
    if not len(table):
        raise UserError(f"{path} holds no images: its Parquet has no rows")
    return table


def _find(path: str) -> tuple[Any, list[Any]]:
    """Return the file system and the `pyarrow.fs.FileInfo` of each Parquet file."""
    try:
        if "://" in path:
            filesystem, place = pyarrow.fs.FileSystem.from_uri(path)
        else:
            filesystem, place = pyarrow.fs.LocalFileSystem(), str(Path(path).expanduser().absolute())
        info = filesystem.get_file_info(place)
        if info.type == pyarrow.fs.FileType.File:
            return filesystem, [info]
        if info.type != pyarrow.fs.FileType.Directory:
            raise UserError(f"data {path!r} does not exist; wanted: a Parquet file or a folder of them")
        inside = filesystem.get_file_info(pyarrow.fs.FileSelector(place))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read data {path!r}: {_line(error)}") from None
    files = [file for file in inside if file.base_name.endswith(".parquet") and file.base_name[0] not in "._"]
    if not files:
        raise UserError(f"folder {path!r} holds no .parquet files; wanted: some, directly in it")
    return filesystem, sorted(files, key=lambda file: str(file.path))


def _table_of(copy: Path) -> ImageTable:
    columns = _read_copy(copy, ["label", "domain", "split", "id", "digest"])
    said = {name: columns[name].to_pylist() for name in columns.column_names}
    label, labels = encode(said["label"])
    domain, domains = encode(said["domain"])
    return ImageTable(
        store=ParquetStore(copy),
        store_rows=np.arange(len(columns)),
        label=label,
        domain=domain,
        split=np.array([SPLITS.index(split) for split in said["split"]], dtype=np.int8),
        id=np.array(said["id"], dtype=object),
        labels=labels,
        domains=domains,
        fingerprint=hash_of(value for values in said.values() for value in values),
    )


def _read_copy(copy: Path, columns: list[str]) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(copy))).read_all().select(columns)


def _make_copy(filesystem: Any, files: list[str], copy: Path) -> None:
    with (
        atomic_file(copy) as path,
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, _COPY_SCHEMA) as writer,
    ):
        for file in files:
            first = 0
            for batch in _read_batches(filesystem, file):
                writer.write_batch(_copy_batch(batch, file, first))
                first += len(batch)


def _read_batches(filesystem: Any, file: str) -> Iterator[Any]:
    try:
        with filesystem.open_input_file(file) as handle:
            # with a buffer, a row group of many gigabytes is not read as a whole
            reader = pq.ParquetFile(handle, buffer_size=1 << 22)
            columns = _checked_columns(reader.schema_arrow, file)
            yield from reader.iter_batches(_BATCH_ROWS, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {_line(error)}") from None


def _checked_columns(schema: Any, file: str) -> list[str]:
    """Return the columns to read, having checked that they are there and of the right types."""
    for name, (accepts, wanted) in _COLUMN_TYPES.items():
        if name not in schema.names:
            if name == "id":
                continue
            raise UserError(f"{file} has no column {name!r} (columns: {', '.join(schema.names)}); {_WANTED}")
        found = schema.field(name).type
        if not accepts(found.value_type if pa.types.is_dictionary(found) else found):
            raise UserError(f"{file}: column {name!r} is of type {found}, {wanted} wanted")
    return [name for name in _COLUMN_TYPES if name in schema.names]


def _is_bytes(found: Any) -> bool:
    return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))


def _is_text(found: Any) -> bool:
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found))


def _is_id(found: Any) -> bool:
    return _is_text(found) or bool(pa.types.is_integer(found))


_COLUMN_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image": (_is_bytes, "binary (encoded bytes)"),
    "label": (_is_text, "string"),
    "domain": (_is_text, "string"),
    "split": (_is_text, "string (train, val or test)"),
    "id": (_is_id, "string or integer"),
}


def _copy_batch(batch: Any, file: str, first: int) -> Any:
    """Return a batch, whose first row is row ``first`` of the file, in `_COPY_SCHEMA`."""
    columns = {name: _plain(batch[name], name, file, first) for name in batch.schema.names}
    known = pc.is_in(columns["split"], value_set=pa.array(SPLITS, pa.large_string()))
    if not pc.all(known, min_count=0).as_py():
        row = known.index(False).as_py()
        raise UserError(
            f"{file} row {first + row}: split {columns['split'][row].as_py()!r} is unknown; "
            f"accepted: {', '.join(SPLITS)}"
        )
    rows = range(first, first + len(batch))
    if "id" in columns:
        ids = columns["id"].to_pylist()
        names = [f"{file} row {row} (id {name})" for row, name in zip(rows, ids, strict=True)]
    else:
        ids = [f"{Path(file).name}:{row}" for row in rows]
        names = [f"{file} row {row}" for row in rows]
    digests = [hashlib.blake2b(image.as_buffer(), digest_size=16).digest() for image in columns["image"]]
    columns |= {"id": ids, "name": names, "digest": digests}
    return pa.record_batch([pa.array(columns[f.name], f.type) for f in _COPY_SCHEMA], schema=_COPY_SCHEMA)


def _plain(column: Any, name: str, file: str, first: int) -> Any:
    """Return a column without dictionary, in the copy's type, having checked for nulls."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise UserError(f"{file} row {first + row}: column {name!r} is null; a value is wanted")
    return column.cast(_COPY_SCHEMA.field(name).type)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
