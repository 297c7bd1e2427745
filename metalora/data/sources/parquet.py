"""Read a table from Parquet files, local or on any file system that pyarrow supports.

Parquet has no random access, so its images are copied once into the cache, a few rows at a time, and read from there.
The copy is a folder of two files. ``images.bin`` has the encoded images one after another, equal ones only once.
``index.arrow`` has one row per image, with its place, its digest and the values of the other columns.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from metalora.config import DataConfig
from metalora.data.domains import exclude_domains
from metalora.data.sources.base import SOURCES, DataSource, is_parquet
from metalora.data.sources.csv_rows import is_csv
from metalora.data.sources.listing import load_listing, names_files
from metalora.data.sources.parquet_files import Source, find_files, read_rows, with_class_names
from metalora.data.table import SPLITS, Table, encode, hash_of
from metalora.errors import UserError
from metalora.files import cache_dir, cached
from metalora.places import absolute
from metalora.reading import gate

_COPY_VERSION = "4"
_IMAGES, _INDEX = "images.bin", "index.arrow"
_INDEX_ROWS = 4096  # of a record batch, at least
_INDEX_SCHEMA = pa.schema(
    {
        "offset": pa.int64(),
        "length": pa.int64(),
        "digest": pa.binary(16),  # of the image
        "label": pa.large_string(),
        "domain": pa.large_string(),
        "split": pa.large_string(),
        "id": pa.large_string(),
        "name": pa.large_string(),  # for error messages
    }
)


@dataclass(frozen=True)
class ParquetStore:
    """Reads images from the copy in the cache; a damaged copy is made again.

    Attributes:
        path: Path of the Parquet, as `load_parquet` takes it.
        copy: Folder of the copy in the cache.
    """

    path: str
    copy: Path

    @cached_property
    def _index(self) -> Any:
        return _read_index(_copy_of(self.path, self.copy), ["offset", "length", "digest", "name"])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "copy": self.copy}  # the index is read anew in each process

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row.

        Raises:
            UserError: the image is damaged in the copy, and the copy cannot be made again.
        """
        image = self._stored(row)
        if image is None:
            _copy_of(self.path, self.copy, lambda: self._damage(row))
            image = self._stored(row)
        if image is None:
            raise UserError(f"image {self.name(row)} is damaged in the cache {self.copy}, though that was made anew")
        return image

    def name(self, row: int) -> str:
        """Return the name of a row: its file, number and id."""
        name: str = self._index["name"][row].as_py()
        return name

    def _stored(self, row: int) -> bytes | None:
        """Return the image in the copy; None if it is damaged."""
        offset, length, digest = (self._index[name][row].as_py() for name in ("offset", "length", "digest"))
        try:
            # opened each time, since the copy may have been made anew; read, not mapped, since a mapped file that
            # becomes shorter ends the process
            with (self.copy / _IMAGES).open("rb", buffering=0) as file:
                image = os.pread(file.fileno(), length, offset)
        except OSError:
            return None
        return image if _digest(image) == digest else None

    def _damage(self, row: int) -> str | None:
        return f"image {self.name(row)}" if self._stored(row) is None else None


def load_parquet(path: str, source: Source | None = None) -> Table:
    """Read a Parquet file, or all the ``*.parquet`` files in a folder and the folders below it.

    Columns: ``image`` (encoded bytes), ``label``, ``domain`` and ``split`` (train, val or test), ``id`` (default: file
    and row), of any type that `columns` accepts. Other columns are ignored. A missing column takes its value from
    folders such as ``domain=photo/split=train``. A missing split may also be the name of a folder, or the beginning of
    the file's name (``train-00000-of-00001.parquet``). A missing domain is "all" in files of Hugging Face's datasets.

    Args:
        path: A local path, or a URI that pyarrow supports (s3://, gs://, file://).
        source: Its files, if they were found already.

    Raises:
        UserError: the path does not exist or is not Parquet, a column is missing or has another type, a value is null,
            or a split is unknown.
    """
    source = with_class_names(find_files(path) if source is None else source)
    copy = cache_dir("data") / _copy_name(source)
    store = ParquetStore(path if "://" in path else str(absolute(path)), copy)
    table = _table_of(store)
    if not len(table):
        raise UserError(f"{path} holds no images: its Parquet has no rows")
    return replace(table, ignored=source.ignored)


def _copy_name(source: Source) -> str:
    return f"images-{hash_of([_COPY_VERSION, source.stamp()])}"


def _copy_of(path: str, copy: Path, check: Callable[[], str | None] = lambda: None) -> Path:
    """Return the copy of Parquet in the cache, made if it is not there, or damaged.

    Raises:
        UserError: the Parquet cannot be read, or has changed since; the copy cannot be written.
    """

    def make(folder: Path) -> None:
        source = with_class_names(find_files(path))
        if _copy_name(source) != copy.name:
            raise UserError(f"the copy of {path} in the cache {copy} is damaged, and {path} has changed since")
        _write_copy(source, folder)

    return cached(copy, make, [_INDEX], check)


def _write_copy(source: Source, folder: Path) -> None:
    with (
        (folder / _IMAGES).open("wb") as images,
        pa.OSFile(str(folder / _INDEX), "wb") as sink,
        pa.ipc.new_file(sink, _INDEX_SCHEMA) as index,
    ):
        waiting: list[Any] = []  # since a batch may be of one row, and takes a kilobyte in the file
        for batch in _copy_images(source, images):
            waiting.append(batch)
            if sum(map(len, waiting)) >= _INDEX_ROWS:
                index.write_table(pa.Table.from_batches(waiting).combine_chunks())
                waiting = []
        index.write_table(pa.Table.from_batches(waiting, _INDEX_SCHEMA).combine_chunks())


def _copy_images(source: Source, file: IO[bytes]) -> Iterator[Any]:
    """Write the images, equal ones only once, and yield their rows of the index."""
    places: dict[bytes, int] = {}  # digest to offset
    for rows in read_rows(source):
        buffers = [image.as_buffer() for image in rows.images]
        digests = [_digest(buffer) for buffer in buffers]
        for digest, buffer in zip(digests, buffers, strict=True):
            if digest not in places:
                places[digest] = file.tell()
                file.write(buffer)
        columns = rows.texts | {
            "offset": [places[digest] for digest in digests],
            "length": [buffer.size for buffer in buffers],
            "digest": digests,
            "name": rows.names,
        }
        yield pa.record_batch([pa.array(columns[f.name], f.type) for f in _INDEX_SCHEMA], _INDEX_SCHEMA)


def _table_of(store: ParquetStore) -> Table:
    columns = _read_index(_copy_of(store.path, store.copy), ["label", "domain", "split", "id", "digest"])
    said = {name: columns[name].to_pylist() for name in columns.column_names}
    label, labels = encode(said["label"])
    domain, domains = encode(said["domain"])
    return Table(
        store=store,
        store_rows=np.arange(len(columns)),
        label=label,
        domain=domain,
        split=np.array([SPLITS.index(split) for split in said["split"]], dtype=np.int8),
        id=np.array(said["id"], dtype=object),
        labels=labels,
        domains=domains,
        fingerprint=hash_of(value for values in said.values() for value in values),
    )


def _read_index(copy: Path, columns: list[str]) -> Any:
    with gate(f"the cache {copy}"), pa.OSFile(str(copy / _INDEX)) as file:
        return pa.ipc.open_file(file).read_all().select(columns).combine_chunks()


def _digest(image: Any) -> bytes:
    return hashlib.blake2b(image, digest_size=16).digest()


@SOURCES.register("parquet")
class Parquet(DataSource):
    """Parquet files, local or at a URI."""

    wanted = "Parquet: a .parquet file, a folder of such files, or a URI (s3://, gs://, file://)"

    def opens(self, data: str) -> bool:
        """Tell whether there is Parquet, or a URI. See `DataSource.opens`."""
        return "://" in data or is_parquet(Path(data))

    def open(self, config: DataConfig) -> Table:
        """Read the files. See `load_parquet`, and `load_listing` for those that name image files."""
        if "://" in config.data and is_csv(PurePosixPath(config.data)):
            raise UserError(f"data {config.data!r} is CSV and not local; wanted: Parquet, or a local copy of it")
        source, excluded = find_files(config.data), config.exclude_domains
        if names_files(source):
            return load_listing(config.data, config.val_fraction, config.test_fraction, excluded, source)
        return exclude_domains(load_parquet(config.data, source), excluded)
