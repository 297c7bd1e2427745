"""Read a table that names image files: CSV, or Parquet with a column of paths in place of the images.

Its rows are read as texts and put in the order that a tree of folders has (domain, class, path). So a table that names
the files of such a tree, its rows in any order, is the same data set as the tree, with the same splits drawn.
"""

import stat
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from metalora.config import DataConfig
from metalora.data.domains import check_named
from metalora.data.names import ONE_DOMAIN, SPLIT_NAMES, printable
from metalora.data.sources import class_names
from metalora.data.sources.base import SOURCES, DataSource
from metalora.data.sources.columns import check_type, hugging_face_names, listed, read_texts
from metalora.data.sources.csv_rows import is_csv, read_csv
from metalora.data.sources.image_files import ImageFile, draw_splits, stamp_of, table_of
from metalora.data.sources.parquet_files import Source, below_folder, find_files, opened, read_batches, told_by_path
from metalora.data.table import Table, hash_of
from metalora.errors import UserError
from metalora.limits import limits
from metalora.reading import short

PATHS = ("path", "file", "file_name", "filename", "filepath", "file_path", "image_path")
WORDS: dict[str, tuple[str, ...]] = {  # what columns are called, in any case; the first word is preferred
    "path": PATHS,
    "label": ("label", "class", "target"),
    "label_name": class_names.COLUMNS,
    "domain": ("domain",),
    "split": ("split",),
    "id": ("id",),
}
CSV_WORDS = WORDS | {"path": (*PATHS, "image")}
_WANTED = "wanted: path, label and, if you like, label_name, domain, split (train, val or test) and id"

Texts = dict[str, list[str]]


@dataclass
class Listing:
    """The rows of a table that names image files, as texts.

    Attributes:
        root: Folder that relative paths start from.
        texts: Values by meaning: ``path``, and of ``label``, ``label_name``, ``domain``, ``split`` and ``id`` those
            that were asked for and are there.
    """

    root: Path
    texts: Texts = field(default_factory=lambda: defaultdict(list))
    _starts: list[tuple[int, str, int]] = field(default_factory=list)
    _size: int = 0

    def __len__(self) -> int:
        return len(self.texts["path"])

    def add(self, file: str, first: int, texts: Texts) -> None:
        """Add rows, the first of which is row ``first`` of the file.

        Raises:
            UserError: a column is there in some files only, or there are more rows or bytes than `limits` allow.
        """
        if self._starts and texts.keys() != self.texts.keys():
            other = min(texts.keys() ^ self.texts.keys())
            raise UserError(f"{file}: some files of {printable(str(self.root))} have a column {other!r}, others do not")
        self._starts.append((len(self), file, first))
        for name, values in texts.items():
            self.texts[name] += values
            self._size += sum(map(len, values))
        most = limits()
        for limit, met in (("table_rows", len(self)), ("table_bytes", self._size)):
            if met > getattr(most, limit):
                raise UserError(f"{file}: the table has more than {limit} = {getattr(most, limit)}")

    def where(self, row: int) -> str:
        """Return what error messages call a row: its file, and its number there."""
        start, file, first = self._starts[bisect_right(self._starts, row, key=lambda one: one[0]) - 1]
        return f"{file} row {first + row - start}"

    def name(self, row: int) -> str:
        """Return the id of a row, or its path if the table has no ids."""
        return self.texts["id"][row] if "id" in self.texts else printable(self.texts["path"][row])

    def stamp(self, row: int, missing: dict[int, str]) -> str:
        """Return a text that changes when a row's file does; what is wrong with the file goes into ``missing``.

        Raises:
            UserError: the row names a URI.
        """
        path = self.texts["path"][row]
        if "://" in path:
            wanted = "the path of a file, or Parquet with the images' bytes"
            raise UserError(f"{self.where(row)}: {short(path)} is a URI; wanted: {wanted}")
        try:
            status = (self.root / path).stat()
        except OSError as error:
            reason = error.strerror or "it cannot be read"
        except ValueError:  # a null character
            reason = "no file can have this name"
        else:
            if stat.S_ISREG(status.st_mode):
                return stamp_of(status)
            reason = "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is a pipe or a device"
        missing[row] = f"{self.where(row)} names the image {printable(path)}: {reason}"
        return "missing"


def names_files(source: Source) -> bool:
    """Tell whether Parquet has a column of paths, and none of images."""
    with opened(source, source.files[0]) as (reader, _):
        names = [name.casefold() for name in reader.schema_arrow.names]
        return "image" not in names and any(name in names for name in PATHS)


def read_listing(path: str, wanted: Collection[str], source: Source | None = None) -> Listing:
    """Read the texts of a table that names image files.

    Args:
        path: A CSV file, or Parquet: a file, or a folder of files.
        wanted: Meanings of the columns to read (see `WORDS`). ``path`` and ``label`` must be there.
        source: The Parquet, if it was found already.

    Raises:
        UserError: the table cannot be read, a column is missing or there twice, or a value is empty or too long.
    """
    if is_csv(Path(path)):
        listing = Listing(Path(path).parent.absolute())
        for part in _read_csv(Path(path), wanted):
            listing.add(*part)
        return listing
    source = find_files(path) if source is None else source
    if not isinstance(source.filesystem, pyarrow.fs.LocalFileSystem):
        raise UserError(f"data {short(path)} names image files, and is not local; wanted: the images' bytes in it")
    listing = Listing(Path(source.folder))
    for info in source.files:
        for part in _read_parquet(source, info, wanted):
            listing.add(*part)
    return listing


def _read_csv(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, int, Texts]]:
    file, known = printable(str(path)), {word for words in CSV_WORDS.values() for word in words}
    rows = read_csv(path, known)
    names = [column[0] or "" for column in next(rows)[1]]
    columns = _choose(names, CSV_WORDS, wanted, (), file)
    for first, values in rows:
        arrays = {name: pa.array(values[names.index(name)], pa.large_string()) for name in columns.values()}
        yield file, first, _texts(arrays, columns, file, first, {})


def _read_parquet(source: Source, info: Any, wanted: Collection[str]) -> Iterator[tuple[str, int, Texts]]:
    file, first = printable(info.path), 0
    told = {
        name: v for name, v in told_by_path(info.path, below_folder(source.folder, info.path)).items() if name in wanted
    }
    with opened(source, info) as (reader, handle):
        schema = reader.schema_arrow
        columns = _choose(schema.names, WORDS, wanted, told, file)
        for meaning, name in columns.items():
            check_type(schema, name, meaning, file)
        meanings = hugging_face_names(schema)
        for batch in read_batches(reader, handle, list(columns.values()), info.size):
            texts = {name: [value] * len(batch) for name, value in told.items() if name not in columns}
            yield file, first, texts | _texts(batch, columns, file, first, meanings)
            first += len(batch)


def _choose(
    names: Sequence[str], words: Mapping[str, Sequence[str]], wanted: Collection[str], told: Collection[str], file: str
) -> dict[str, str]:
    """Return the name of the column of each meaning that a table has.

    Raises:
        UserError: a column is missing, or two have one meaning.
    """
    chosen = {}
    for meaning in (meaning for meaning in words if meaning in wanted):
        met = [name for name in names if name.strip().casefold() in words[meaning]]
        preferred = [name for name in met if name.strip().casefold() == words[meaning][0]] or met
        if len(preferred) > 1:
            raise UserError(f"{file} has {len(preferred)} columns for the {meaning}: {listed(preferred)}; wanted: one")
        if preferred:
            chosen[meaning] = preferred[0]
        elif meaning in ("path", "label") and meaning not in told:
            raise UserError(f"{file} has no column {meaning!r} (columns: {listed(list(names))}); {_WANTED}")
    return chosen


def _texts(
    batch: Any, columns: Mapping[str, str], file: str, first: int, meanings: Mapping[str, Mapping[int, str]]
) -> Texts:
    return {
        meaning: read_texts(batch[name], name, file, first, meanings.get(name), as_written=meaning in ("path", "id"))
        for meaning, name in columns.items()
    }


def load_listing(
    path: str,
    val_fraction: float,
    test_fraction: float,
    excluded: Collection[str] = (),
    source: Source | None = None,
) -> Table:
    """Read the table of the images that a table names; see the module.

    Columns: ``path``, ``label`` and, if they are there, ``domain`` (default: "all"), ``split``, ``id`` (default: the
    path) and ``label_name``. `WORDS` has other names of them. Relative paths start from the folder of the table. Splits
    that no row is in are drawn from the train images, as for a tree of folders. Integers as labels get the names of
    ``label_name``, or of a file: see `read_class_file`.

    Args:
        path: A CSV file, or Parquet: a file, or a folder of files.
        val_fraction: Share of each class for validation, if no row is in the val split.
        test_fraction: Share of each class for the test, if no row is in the test split.
        excluded: Names of domains that are left out.
        source: The Parquet, if it was found already.

    Raises:
        UserError: the table cannot be read, has no rows, names something else than files, or a split or domain is
            unknown. Files that are not there are in ``missing`` of the table.
    """
    listing = read_listing(path, WORDS, source)
    if not len(listing):
        raise UserError(f"data {path!r} names no images: it has no rows")
    texts = listing.texts
    domains = texts.get("domain") or [ONE_DOMAIN] * len(listing)
    check_named(excluded, set(domains))
    labels, splits = _labels(listing), _splits(listing)
    classes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, place in enumerate(zip(domains, labels, strict=True)):
        if place[0] not in excluded:
            classes[place].append(row)
    missing: dict[int, str] = {}
    members = [
        [
            ImageFile(texts["path"][row], listing.name(row), listing.stamp(row, missing), *place, splits[row])
            for row in sorted(rows, key=lambda row: texts["path"][row].split("/"))
        ]
        for place, rows in sorted(classes.items())
    ]
    images = draw_splits(members, val_fraction, test_fraction)
    said = (part for one in images for part in (one.id, one.file, one.stamp, one.domain, one.label, one.split))
    table = table_of(listing.root, images, hash_of(said))
    return replace(table, missing=tuple(missing[row] for row in sorted(missing)))


def _labels(listing: Listing) -> list[str]:
    labels, names = listing.texts["label"], listing.texts.get("label_name")
    if not class_names.are_integers(labels):
        return labels
    if names is not None:
        class_names.Pairs().check(labels, names, listing.where)
        return names
    known = class_names.read_class_file(listing.root)
    return labels if known is None else class_names.named(labels, known, listing.where)


def _splits(listing: Listing) -> list[str]:
    said = listing.texts.get("split") or ["train"] * len(listing)
    splits = [SPLIT_NAMES.get(split.casefold(), "") for split in said]
    if "" in splits:
        row = splits.index("")
        raise UserError(f"{listing.where(row)}: split {short(said[row])} is unknown; accepted: train, val, test")
    return splits


@SOURCES.register("listing")
class ListingSource(DataSource):
    """A CSV file that names image files."""

    wanted = "a .csv or .tsv file that names image files"

    def opens(self, data: str) -> bool:
        """Tell whether there is such a file. See `DataSource.opens`."""
        return "://" not in data and is_csv(Path(data)) and Path(data).exists() and not Path(data).is_dir()

    def open(self, config: DataConfig) -> Table:
        """Read the table. See `load_listing`."""
        return load_listing(config.data, config.val_fraction, config.test_fraction, config.exclude_domains)
