"""Images without labels, to predict from: a file, any tree of files, Parquet, or a table that names image files."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from metalora.data.names import printable
from metalora.data.sources.base import is_parquet
from metalora.data.sources.columns import read_images, read_texts
from metalora.data.sources.csv_rows import is_csv
from metalora.data.sources.folders import read_tree
from metalora.data.sources.image_files import FolderStore, refuse_missing, stamp_of
from metalora.data.sources.listing import names_files, read_listing
from metalora.data.sources.parquet_files import Source, find_files, opened, read_batches
from metalora.data.table import hash_of
from metalora.errors import UserError
from metalora.missing import is_missing, no_such_path


class Unlabelled:
    """A series of encoded images with their names.

    Args:
        path: An image file, a folder with image files at any depth, Parquet (a file or a folder of files), or CSV that
            names image files.

    Attributes:
        fingerprint: Changes when a file is added, removed or changed.

    Raises:
        UserError: there are no images, or a table names files that cannot be read.
    """

    store: FolderStore
    names: list[str]

    def __init__(self, path: Path) -> None:
        if is_missing(path):
            raise UserError(no_such_path(path, "images"))
        self.parquet = find_files(str(path)) if is_parquet(path) else None
        if (is_csv(path) and not path.is_dir()) or (self.parquet is not None and names_files(self.parquet)):
            self._open_listing(path)
        elif self.parquet is not None:
            self.count = sum(self._rows_of(self.parquet, info) for info in self.parquet.files)
            self.fingerprint = self.parquet.stamp()
        else:
            inside = path if path.is_dir() else path.parent
            stamps = read_tree(path).images if path.is_dir() else {(path.name,): stamp_of(path.stat())}
            self.store = FolderStore(inside, tuple("/".join(parts) for parts in stamps))
            self.names, self.count = list(map(printable, self.store.files)), len(stamps)
            self.fingerprint = hash_of(f"{'/'.join(parts)} {stamp}" for parts, stamp in stamps.items())
        if not self.count:
            raise UserError(f"no images found in {str(path)!r}; wanted: image files, Parquet or CSV")

    def _open_listing(self, path: Path) -> None:
        listing = read_listing(str(path), ("path", "id"), self.parquet)
        missing: dict[int, str] = {}
        self.parquet, self.count = None, len(listing)
        self.names = [listing.name(row) for row in range(self.count)]
        self.store = FolderStore(listing.root, tuple(listing.texts["path"]))
        stamps = [f"{name} {listing.stamp(row, missing)}" for row, name in enumerate(self.names)]
        refuse_missing(list(missing.values()))
        self.fingerprint = hash_of([*stamps, *self.store.files])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the bytes of each image.

        The name of a file is its path below the folder, that of a row its id, path or number.

        Raises:
            UserError: a file cannot be read.
        """
        if self.parquet is None:
            yield from ((name, self.store.read(row)) for row, name in enumerate(self.names))
            return
        for info in self.parquet.files:
            yield from self._rows(self.parquet, info)

    def _rows_of(self, source: Source, info: Any) -> int:
        """Return the number of rows of a Parquet file, after checking that it has images."""
        with opened(source, info) as (reader, _):
            names = reader.schema_arrow.names
            if names.count("image") != 1:
                raise UserError(f"it has {names.count('image')} columns 'image' (columns: {', '.join(names[:20])})")
            return int(reader.metadata.num_rows)

    def _rows(self, source: Source, info: Any) -> Iterator[tuple[str, bytes]]:
        what, first = printable(info.path), 0
        name = printable(str(PurePosixPath(info.path).relative_to(source.folder)))
        with opened(source, info) as (reader, handle):
            columns = ["image", *(["id"] if reader.schema_arrow.names.count("id") == 1 else [])]
            for batch in read_batches(reader, handle, columns, info.size):
                images = read_images(batch["image"], what, first)
                ids = read_texts(batch["id"], "id", what, first, as_written=True) if "id" in columns else None
                for row, image in enumerate(images.to_pylist()):
                    yield (f"{name} row {first + row}" if ids is None else ids[row]), image
                first += len(batch)
