"""Find Parquet files, local or on any file system that pyarrow supports, and read their rows, a few at a time."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow.fs
import pyarrow.parquet as pq

from metalora.data.names import ONE_DOMAIN, SPLIT_NAMES, composed, printable
from metalora.data.sources import class_names
from metalora.data.sources.columns import (
    check_columns,
    check_type,
    has_integers,
    hugging_face_names,
    is_hugging_face,
    read_images,
    read_texts,
)
from metalora.data.sources.pages import read_pages
from metalora.data.table import SPLITS, hash_of
from metalora.errors import UserError
from metalora.limits import limits
from metalora.places import absolute
from metalora.reading import gate, short

_BATCH_ROWS = 256  # at most
_EXPANSION = 1000  # what a file may hold, repeated images counted each time, to its own size
_ROW_BYTES = 2**14  # what a row counts beside its image and texts


@dataclass(frozen=True)
class Source:
    """The Parquet files of one source, and the files beside them."""

    filesystem: Any
    folder: str  # that the files are in, or below
    files: list[Any]  # `pyarrow.fs.FileInfo`
    ignored: tuple[str, ...]
    classes: Mapping[int, str] | None = None  # names of integers as labels, from a file beside them

    def stamp(self) -> str:
        """Return a hash that changes when a file is changed, added or removed."""
        stamps = [str(stamp) for file in self.files for stamp in (file.path, file.size, file.mtime_ns)]
        names = [str(part) for pair in sorted((self.classes or {}).items()) for part in pair]
        return hash_of([self.filesystem.type_name, self.folder, *stamps, *names])


@dataclass(frozen=True)
class Rows:
    """Some rows of a file: encoded images (large_binary), and the strings of every other column."""

    images: Any
    texts: dict[str, list[str]]
    names: list[str]  # for error messages


def find_files(path: str) -> Source:
    """Find a Parquet file, or all the ``*.parquet`` files in a folder and the folders below it.

    Raises:
        UserError: the path does not exist or holds no Parquet, a name is not UTF-8, or a link leads nowhere or shows a
            file or folder twice.
    """
    what = f"data {path!r}"
    with gate(what):
        if "://" in path:
            filesystem, place = pyarrow.fs.FileSystem.from_uri(path)
        else:
            filesystem, place = pyarrow.fs.LocalFileSystem(), str(absolute(path))
        try:
            info = filesystem.get_file_info(place)
            if info.type == pyarrow.fs.FileType.File:
                return Source(filesystem, str(PurePosixPath(info.path).parent), [info], ())
            if info.type != pyarrow.fs.FileType.Directory:
                raise UserError(f"{what} does not exist; wanted: a Parquet file or a folder of them")
            inside = _list_files(filesystem, info.path)
        except UnicodeError as error:  # pyarrow's paths are UTF-8
            name = short(getattr(error, "object", path))
            raise UserError(f"{what} cannot be read: the name {name} is not UTF-8; rename it") from None
    below = {below_folder(info.path, file.path): file for file in inside}
    visible = [name for name in sorted(below) if not _is_hidden(PurePosixPath(name))]
    found = [name for name in visible if name.endswith(".parquet") and below[name].type == pyarrow.fs.FileType.File]
    if not found:
        raise UserError(f"folder {path!r} holds no .parquet files; wanted: some")
    ignored = tuple(printable(name) for name in visible if name not in {*found, *class_names.FILES})
    return Source(filesystem, info.path, [below[name] for name in found], ignored)


def _list_files(filesystem: Any, folder: str) -> list[Any]:
    """Return pyarrow's file infos of all files below a folder."""
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return list(filesystem.get_file_info(_walk(folder)))
    inside = filesystem.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True))
    return [file for file in inside if file.type != pyarrow.fs.FileType.Directory]


def _walk(top: str) -> list[str]:
    """List the visible files below a local folder, links followed.

    pyarrow would do this too, but follows links in circles (of two, for ever) and is silent about those that lead
    nowhere.

    Raises:
        UserError: a link leads nowhere, or shows a file or folder twice.
    """
    met: dict[tuple[int, int], str] = {}
    found = []
    for folder, folders, files in os.walk(top, followlinks=True, onerror=_raise):
        folders[:] = sorted(name for name in folders if not _is_hidden(PurePath(name)))
        paths = [os.path.join(folder, name) for name in sorted(files) if not _is_hidden(PurePath(name))]  # noqa: PTH118
        for path in (folder, *paths):
            try:
                status = os.stat(path)  # noqa: PTH116
            except FileNotFoundError:
                raise UserError(f"cannot read {printable(path)}: it is a link to what is not there") from None
            other = met.setdefault((status.st_dev, status.st_ino), path)
            if other != path:
                names = " and ".join(printable(os.path.relpath(name, top)) for name in (other, path))
                raise UserError(f"{printable(top)} holds one file or folder twice, by a link: {names}")
        found += paths
    return found


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(below: PurePath) -> bool:
    return any(part[0] in "._" for part in below.parts)


def below_folder(folder: str, file: str) -> str:
    """Return a file's path relative to the folder that it is in, or below."""
    return str(PurePosixPath(file).relative_to(folder))


def told_by_path(path: str, below: str) -> dict[str, str]:
    """Return the columns that a path gives: domain=photo, split=train, or a name that begins with a split's name."""
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


def read_rows(source: Source) -> Iterator[Rows]:
    """Yield the rows of all files, in the order of the files, `limits().rows_bytes` at a time.

    Raises:
        UserError: a file is not Parquet, a column is missing or has another type, a value is null, or a split is
            unknown.
    """
    pairs = class_names.Pairs()
    for file in source.files:
        yield from _read_file(source, file, pairs)


def with_class_names(source: Source) -> Source:
    """Return a source with the names of its classes, if its labels are integers and a local file beside it has them.

    Raises:
        UserError: the file of names cannot be read.
    """
    local = isinstance(source.filesystem, pyarrow.fs.LocalFileSystem)
    if not (local and class_names.find_class_files(Path(source.folder))):
        return source
    with opened(source, source.files[0]) as (reader, _):
        bare = _unnamed(reader.schema_arrow) and _name_column(reader.schema_arrow) is None
    return replace(source, classes=class_names.read_class_file(Path(source.folder))) if bare else source


def _unnamed(schema: Any) -> bool:
    """Tell whether labels are integers, and nothing in the file's metadata names them."""
    return has_integers(schema, "label") and "label" not in hugging_face_names(schema)


def _name_column(schema: Any) -> str | None:
    """Return the column that names labels, if there is one."""
    return next((name for name in class_names.COLUMNS if schema.names.count(name) == 1), None)


@contextmanager
def opened(source: Source, info: Any) -> Iterator[tuple[Any, Any]]:
    """Open a file of a source, as a `pyarrow.parquet.ParquetFile` and as a file; errors in the block name the file."""
    with gate(f"Parquet file {printable(info.path)}"), source.filesystem.open_input_file(info.path) as handle:
        # with a buffer, a row group of many gigabytes is not read as a whole
        yield pq.ParquetFile(handle, buffer_size=1 << 22, page_checksum_verification=True), handle


def _read_file(source: Source, info: Any, pairs: class_names.Pairs) -> Iterator[Rows]:
    file, below = printable(info.path), below_folder(source.folder, info.path)
    with opened(source, info) as (reader, handle):
        if not reader.metadata.num_rows:
            return
        schema = reader.schema_arrow
        told = ({"domain": ONE_DOMAIN} if is_hugging_face(schema) else {}) | told_by_path(info.path, below)
        columns, meanings = check_columns(schema, told, file), hugging_face_names(schema)
        namer = _name_column(schema) if _unnamed(schema) else None
        if namer is not None:
            check_type(schema, namer, "label_name", file)
            columns.append(namer)
        elif _unnamed(schema) and source.classes is not None:
            meanings["label"] = dict(source.classes)
        first, room = 0, max(_EXPANSION * info.size, 4 * limits().rows_bytes)
        for batch in read_batches(reader, handle, columns, info.size):
            texts = {name: [value] * len(batch) for name, value in told.items()}
            for name in columns:
                if name != "image":
                    texts[name] = read_texts(batch[name], name, file, first, meanings.get(name), name == "id")
            if namer is not None:
                pairs.check(texts["label"], texts[namer], f"{file} row {{}}".format, first)
                texts["label"] = texts.pop(namer)
            images = read_images(batch["image"], file, first)
            room -= images.nbytes + len(batch) * _ROW_BYTES
            if room < 0:
                raise ValueError(f"its {info.size} bytes hold the same images or texts again and again")
            yield _rows(images, texts, file, below, first)
            first += len(batch)
            del batch, images, texts  # before the next are read


def _rows(images: Any, texts: dict[str, list[str]], file: str, below: str, first: int) -> Rows:
    """Return rows, the first of which is row ``first`` of the file."""
    numbers = range(first, first + len(images))
    for row, split in zip(numbers, texts["split"], strict=True):
        if split not in SPLITS:
            raise UserError(f"{file} row {row}: split {short(split)} is unknown; accepted: {', '.join(SPLITS)}")
    if "id" in texts:
        names = [f"{file} row {row} (id {printable(name)})" for row, name in zip(numbers, texts["id"], strict=True)]
    else:
        texts = texts | {"id": [f"{printable(below)}:{row}" for row in numbers]}
        names = [f"{file} row {row}" for row in numbers]
    return Rows(images, texts, names)


def read_batches(reader: Any, handle: Any, columns: list[str], size: int) -> Iterator[Any]:
    """Yield the rows of a file, as few at a time as they and their pages fit into memory.

    Args:
        reader: The `pyarrow.parquet.ParquetFile`.
        handle: The open file.
        columns: Names of the columns to read.
        size: Size of the file in bytes.

    Raises:
        ValueError: a value or a page becomes larger than `limits().rows_bytes`, and than the file.
    """
    schema = reader.metadata.schema
    for number in range(reader.metadata.num_row_groups):
        group, row = reader.metadata.row_group(number), 1
        if not group.num_rows:  # and perhaps no pages
            continue
        for leaf in range(group.num_columns):
            if group.column(leaf).path_in_schema.partition(".")[0] in columns:
                row += _largest_value(group.column(leaf), schema.column(leaf).length, handle, size)
        # a quarter: there are the batch before, and buffers of pyarrow, which double as they grow
        count = max(1, min(_BATCH_ROWS, limits().rows_bytes // 4 // row))
        yield from reader.iter_batches(count, row_groups=[number], columns=columns)


def _largest_value(chunk: Any, width: int, handle: Any, size: int) -> int:
    """Return how many bytes a row may take of a column chunk, on average over a page of rows.

    Args:
        chunk: The `pyarrow.parquet.ColumnChunkMetaData`.
        width: Of values of a fixed size, else 0; a null takes as much.
        handle: The file.
        size: Its bytes.

    Raises:
        ValueError: a value or a page becomes larger than `limits().rows_bytes`, and than the file.
    """
    largest, most = max(0, width), limits().rows_bytes
    sizes = [largest]
    for page in read_pages(handle, chunk):
        sizes.append(page.size)
        largest = max(largest, page.size if page.repeats else page.size // max(1, page.values))
    if max(sizes) > max(most, size):
        raise ValueError(
            f"column {short(chunk.path_in_schema)} has a page or value of {max(sizes)} bytes, decompressed; "
            f"at most rows_bytes = {most} are read"
        )
    return largest
