"""Parquet files in the one schema, local or on any file system pyarrow knows.

Parquet has no random access, so its images are copied once into an Arrow IPC file in the cache, a
record batch at a time, and read from there through a memory map.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.ipc
import pyarrow.parquet as pq

from metalora.data.columns import check_columns, class_names, is_hugging_face, read_images, read_texts
from metalora.data.names import ONE_DOMAIN, SPLIT_NAMES, composed, printable
from metalora.data.table import SPLITS, ImageTable, encode, hash_of
from metalora.errors import UserError
from metalora.files import atomic_file, cache_dir

_COPY_VERSION = "2"
_BATCH_ROWS, _BATCH_BYTES = 256, 2**28  # at most, as bytes are counted before compression
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


@dataclass(frozen=True)
class _Source:
    """Parquet files of a file system, and what lies beside them."""

    filesystem: Any
    folder: str  # that the files are in, or below
    files: list[Any]  # `pyarrow.fs.FileInfo`
    ignored: tuple[str, ...]


def load_parquet(path: str) -> ImageTable:
    """Read a Parquet file, or all the ``*.parquet`` files in a folder and the folders below it.

    Columns: ``image`` (encoded bytes), ``label``, ``domain`` and ``split`` (train, val or test), ``id`` (default: file
    and row), of any type that `metalora.data.columns` accepts. Others are ignored. Where a column is missing, folders
    such as ``domain=photo/split=train`` tell its value; the split, also a folder that is called as one or a file whose
    name begins so (``train-00000-of-00001.parquet``); and what Hugging Face's datasets wrote is of one domain, "all".

    Args:
        path: A local path, or a URI that pyarrow knows (s3://, gs://, file://).

    Raises:
        UserError: nothing there, not a Parquet file, a column is missing or of another type, a null,
            an unknown split.
    """
    source = _find(path)
    stamps = [str(stamp) for file in source.files for stamp in (file.path, file.size, file.mtime_ns)]
    key = hash_of([_COPY_VERSION, source.filesystem.type_name, source.folder, *stamps])
    copy = cache_dir("data") / f"images-{key}.arrow"
    if not copy.exists():
        _make_copy(source, copy)
    table = _table_of(copy)
    if not len(table):
        raise UserError(f"{path} holds no images: its Parquet has no rows")
    return replace(table, ignored=source.ignored)


def _find(path: str) -> _Source:
    try:
        if "://" in path:
            filesystem, place = pyarrow.fs.FileSystem.from_uri(path)
        else:
            filesystem, place = pyarrow.fs.LocalFileSystem(), str(Path(path).expanduser().absolute())
        info = filesystem.get_file_info(place)
        if info.type == pyarrow.fs.FileType.File:
            return _Source(filesystem, str(PurePosixPath(info.path).parent), [info], ())
        if info.type != pyarrow.fs.FileType.Directory:
            raise UserError(f"data {path!r} does not exist; wanted: a Parquet file or a folder of them")
        inside = filesystem.get_file_info(pyarrow.fs.FileSelector(place, recursive=True))
        below = {_below(info.path, file.path): file for file in inside if file.type == pyarrow.fs.FileType.File}
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read data {path!r}: {_line(error)}") from None
    except (UnicodeDecodeError, UnicodeEncodeError) as error:  # pyarrow's paths are UTF-8
        raise UserError(f"cannot read data {path!r}: the name {error.object!r} is not UTF-8; rename it") from None
    visible = [name for name in sorted(below) if not _is_hidden(PurePosixPath(name))]
    found = [name for name in visible if name.endswith(".parquet")]
    if not found:
        raise UserError(f"folder {path!r} holds no .parquet files; wanted: some")
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        _check_links(Path(info.path), found)
    ignored = tuple(printable(name) for name in visible if name not in found)
    return _Source(filesystem, info.path, [below[name] for name in found], ignored)


def _check_links(folder: Path, files: list[str]) -> None:
    """Check that no link hides files, or shows them twice as one to a folder above does; pyarrow tells neither.

    Raises:
        UserError: there is one.
    """
    for link in sorted(folder.rglob("*")):
        if not _is_hidden(link.relative_to(folder)) and not link.exists():
            raise UserError(f"cannot read {printable(str(link))}: it is a link to what is not there")
    met: dict[Path, str] = {}
    for name in files:
        other = met.setdefault((folder / name).resolve(), name)
        if other != name:
            raise UserError(f"{printable(str(folder))} holds one file twice, by a link: {other} and {name}")


def _is_hidden(below: PurePath) -> bool:
    return any(part[0] in "._" for part in below.parts)


def _below(folder: str, file: str) -> str:
    return str(PurePosixPath(file).relative_to(folder))


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


def _make_copy(source: _Source, copy: Path) -> None:
    with (
        atomic_file(copy) as path,
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, _COPY_SCHEMA) as writer,
    ):
        for file in source.files:
            for batch in _read_batches(source, file.path):
                writer.write_batch(batch)


def _read_batches(source: _Source, path: str) -> Iterator[Any]:
    """Yield the rows of a file in `_COPY_SCHEMA`."""
    file, below = printable(path), _below(source.folder, path)
    try:
        with source.filesystem.open_input_file(path) as handle:
            # with a buffer, a row group of many gigabytes is not read as a whole
            reader = pq.ParquetFile(handle, buffer_size=1 << 22)
            if not reader.metadata.num_rows:
                return
            schema, names = reader.schema_arrow, class_names(reader.schema_arrow)
            told = ({"domain": ONE_DOMAIN} if is_hugging_face(schema) else {}) | _told(path, below)
            columns = check_columns(schema, told, file)
            first = 0
            for batch in reader.iter_batches(_batch_rows(reader.metadata), columns=columns):
                texts = {name: [value] * len(batch) for name, value in told.items()}
                for name in columns:
                    if name != "image":
                        texts[name] = read_texts(batch[name], name, file, first, names.get(name))
                yield _copy_batch(read_images(batch["image"], file, first), texts, file, below, first)
                first += len(batch)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {_line(error)}") from None


def _told(path: str, below: str) -> dict[str, str]:
    """Return the columns that a path tells: domain=photo, split=train, or a name that begins with a split's."""
    *folders, file = PurePosixPath(below).parts
    told = {}
    for name in (*folders, re.split(r"[-_.]", file)[0]):
        if name.casefold() in SPLIT_NAMES:
            told["split"] = SPLIT_NAMES[name.casefold()]
    for part in PurePosixPath(path).parts[:-1]:
        key, _, value = part.partition("=")
        value = composed(unquote(value))
        if key in ("label", "domain", "split") and value not in ("", "__HIVE_DEFAULT_PARTITION__"):
            told[key] = SPLIT_NAMES.get(value.casefold(), value) if key == "split" else value
    return told


def _batch_rows(metadata: Any) -> int:
    """Return how many rows are read at a time: fewer of large images."""
    size: int = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    rows: int = _BATCH_BYTES * metadata.num_rows // max(1, size)
    return max(1, min(_BATCH_ROWS, rows))


def _copy_batch(images: Any, texts: dict[str, list[str]], file: str, below: str, first: int) -> Any:
    """Return rows, the first of which is row ``first`` of the file, in `_COPY_SCHEMA`."""
    rows = range(first, first + len(images))
    for row, split in zip(rows, texts["split"], strict=True):
        if split not in SPLITS:
            raise UserError(f"{file} row {row}: split {split!r} is unknown; accepted: {', '.join(SPLITS)}")
    if "id" in texts:
        names = [f"{file} row {row} (id {printable(name)})" for row, name in zip(rows, texts["id"], strict=True)]
    else:
        texts = texts | {"id": [f"{printable(below)}:{row}" for row in rows]}
        names = [f"{file} row {row}" for row in rows]
    digests = [hashlib.blake2b(image.as_buffer(), digest_size=16).digest() for image in images]
    columns = texts | {"image": images, "name": names, "digest": digests}
    return pa.record_batch([pa.array(columns[f.name], f.type) for f in _COPY_SCHEMA], schema=_COPY_SCHEMA)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
