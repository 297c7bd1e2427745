"""Images without labels, to predict from: a file, any tree of files, or Parquet with a column ``image``."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from metalora.data.images import extensions
from metalora.data.names import printable
from metalora.data.sources.base import is_parquet
from metalora.data.sources.columns import read_images, read_texts
from metalora.data.sources.folders import FolderStore
from metalora.data.table import hash_of
from metalora.errors import UserError
from metalora.reading import gate

ROWS = 64  # of a Parquet file that are in memory at a time


class Unlabelled:
    """A series of encoded images with their names.

    Args:
        path: An image file, a folder with image files at any depth, or Parquet: a file or a folder of files.

    Attributes:
        fingerprint: Changes when a file is added, removed or changed.

    Raises:
        UserError: there are no images.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"no images: there is no file or folder {str(path)!r}")
        with gate(f"data {str(path)!r}"):
            self.parquet = is_parquet(path)
            ends = (".parquet",) if self.parquet else tuple(extensions())
            self.root = path if path.is_dir() else path.parent
            self.files = _below(path, ends) if path.is_dir() else (path.name,)
            self.count = len(self.files)
            if self.parquet:
                self.count = sum(self._rows_of(file) for file in self.files)
            stamps = ((self.root / file).stat() for file in self.files)
            self.fingerprint = hash_of(
                f"{file} {stamp.st_size} {stamp.st_mtime_ns}" for file, stamp in zip(self.files, stamps, strict=True)
            )
        if not self.count:
            raise UserError(f"no images found in {str(path)!r}; wanted: image files, or Parquet with a column 'image'")

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the bytes of each image: of a file its path below the folder, of a row its id or number.

        Raises:
            UserError: a file cannot be read, or has no column of images.
        """
        if not self.parquet:
            store = FolderStore(self.root, self.files)
            yield from ((printable(file), store.read(row)) for row, file in enumerate(self.files))
            return
        for file in self.files:
            yield from self._rows(file)

    def _rows_of(self, file: str) -> int:
        """Return the number of rows of a Parquet file, after checking that it has images."""
        known = pq.read_metadata(self.root / file)
        names = known.schema.to_arrow_schema().names
        if names.count("image") != 1:
            raise UserError(f"{file} has {names.count('image')} columns 'image' (columns: {', '.join(names[:20])})")
        return int(known.num_rows)

    def _rows(self, file: str) -> Iterator[tuple[str, bytes]]:
        what = printable(str(self.root / file))
        first = 0
        with gate(what), pq.ParquetFile(self.root / file) as opened:
            columns = ["image", *(["id"] if opened.schema_arrow.names.count("id") == 1 else [])]
            for batch in opened.iter_batches(ROWS, columns=columns):
                images = read_images(batch["image"], what, first)
                ids = read_texts(batch["id"], "id", what, first) if "id" in columns else None
                for row, image in enumerate(images.to_pylist()):
                    yield (f"{printable(file)} row {first + row}" if ids is None else ids[row]), image
                first += len(batch)


def _below(folder: Path, ends: tuple[str, ...]) -> tuple[str, ...]:
    """Return the visible files below a folder with one of these endings, as paths below it, in the order of names."""

    def fail(error: OSError) -> Any:
        raise error

    found = []
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [name for name in files if not name.startswith(".") and name.lower().endswith(ends)]
        found += [str(Path(place, name).relative_to(folder)) for name in files]
    return tuple(sorted(found))
