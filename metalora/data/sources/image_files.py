"""Image files that a tree of folders or a table names: how they are read, and how their splits are drawn."""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from metalora.data.names import composed, printable
from metalora.data.table import SPLITS, Table, encode, hash_of
from metalora.errors import UserError
from metalora.limits import limits


@dataclass(frozen=True)
class FolderStore:
    """Reads image files below a folder."""

    root: Path
    files: tuple[str, ...]  # relative to root

    def read(self, row: int) -> bytes:
        """Return the content of the row's file; only the beginning if it is larger than an image may be.

        Raises:
            UserError: the file cannot be read, or is no longer a plain file.
        """
        try:
            # a pipe, which may have come in its place, is not waited for
            with os.fdopen(os.open(self.root / self.files[row], os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise UserError(f"cannot read image {self.name(row)}: it is a pipe or a device")
                return file.read(min(status.st_size, limits().image_bytes) + 1)
        except OSError as error:
            raise UserError(f"cannot read image {self.name(row)}: {error.strerror}") from None

    def name(self, row: int) -> str:
        """Return the path of the row's file."""
        return printable(str(self.root / self.files[row]))


@dataclass(frozen=True)
class ImageFile:
    """An image file, and what is known of it.

    Attributes:
        file: Its path relative to a root, or absolute.
        id: Its id in the table.
        stamp: A text that changes when the file does.
        domain: Name of its domain.
        label: Name of its class.
        split: One of `SPLITS`.
    """

    file: str
    id: str
    stamp: str
    domain: str
    label: str
    split: str


def stamp_of(status: os.stat_result) -> str:
    """Return a text that changes when a file does."""
    return f"{status.st_size} {status.st_mtime_ns}"


def refuse_missing(missing: Sequence[str]) -> None:
    """Refuse files that a table names and that cannot be read.

    Args:
        missing: What is wrong with each, in a line.

    Raises:
        UserError: there are some; the first is told, and how many more there are.
    """
    if missing:
        more = f" ({len(missing) - 1:,} more like it)" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{more}; mend the table, or put the files there")


def table_of(root: Path, images: Sequence[ImageFile], fingerprint: str) -> Table:
    """Return the table of image files in their order.

    Args:
        root: Folder that relative paths start from.
        images: The files.
        fingerprint: Hash of all that is known of them.
    """
    label, labels = encode([image.label for image in images])
    domain, domains = encode([image.domain for image in images])
    return Table(
        store=FolderStore(root.absolute(), tuple(image.file for image in images)),
        store_rows=np.arange(len(images)),
        label=label,
        domain=domain,
        split=np.array([SPLITS.index(image.split) for image in images], dtype=np.int8),
        id=np.array([image.id for image in images], dtype=object),
        labels=labels,
        domains=domains,
        fingerprint=fingerprint,
    )


def draw_splits(classes: Iterable[Sequence[ImageFile]], val_fraction: float, test_fraction: float) -> list[ImageFile]:
    """Return the images class by class, with splits that no image is in drawn from the train images.

    Args:
        classes: The images of each class of each domain.
        val_fraction: Share of each class for validation, at least one image if the class has three.
        test_fraction: Share of each class for the test, at least one image.
    """
    classes = list(classes)
    given = {image.split for members in classes for image in members}
    fractions = (0 if "val" in given else val_fraction, 0 if "test" in given else test_fraction)
    return [image for members in classes for image in _drawn(members, *fractions)]


def _drawn(images: Sequence[ImageFile], val_fraction: float, test_fraction: float) -> list[ImageFile]:
    """Return the images of a class with splits drawn from its train images: the first in hash order are test, then val.

    At least one stays in train.
    """
    train = list({image.file: None for image in images if image.split == "train"})  # a table may name one twice
    most = max(0, len(train) - 1)
    test = min(max(1, round(len(train) * test_fraction)), most) if test_fraction else 0
    val = min(max(1, round(len(train) * val_fraction)), most - test) if val_fraction else 0
    # in NFC, since a copy on another machine may spell a name differently
    order = sorted(train, key=lambda file: (hash_of([composed(printable(file))]), file))
    drawn = dict.fromkeys(order[:test], "test") | dict.fromkeys(order[test : test + val], "val")
    return [replace(image, split=drawn.get(image.file, image.split)) for image in images]
