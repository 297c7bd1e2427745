"""A DomainBed-style tree of image files: root/domain/class/image."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metalora.data.domains import check_named
from metalora.data.table import SPLITS, ImageTable, encode, hash_of
from metalora.errors import UserError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")

_WANTED = f"wanted: a tree root/domain/class/image of {', '.join(EXTENSIONS)} files"


@dataclass(frozen=True)
class _Image:
    domain: str
    label: str
    file: str  # relative to the root
    stamp: str  # changes when the file does
    split: str


@dataclass(frozen=True)
class FolderStore:
    """Reads image files below a folder."""

    root: Path
    files: tuple[str, ...]  # relative to root

    def read(self, row: int) -> bytes:
        """Return the content of the row's file.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return (self.root / self.files[row]).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read image {self.name(row)}: {error.strerror}") from None

    def name(self, row: int) -> str:
        """Return the path of the row's file."""
        return str(self.root / self.files[row])


def load_tree(root: Path, val_fraction: float, test_fraction: float, excluded: Collection[str] = ()) -> ImageTable:
    """Read the tree ``root/domain/class/image``; hidden files and other kinds of files are ignored.

    The splits are drawn within each class of each domain by a hash of the path below ``root``, so a
    new image moves at most a few others of its class, and none of another class.

    Args:
        root: The tree.
        val_fraction: Share of each class for validation, at least one image where there are three.
        test_fraction: Share of each class for the test, at least one image.
        excluded: Names of domains that are not looked at.

    Raises:
        UserError: no images, a domain folder without any, a class with fewer than two, a folder
            that cannot be read.
    """
    names = [folder.name for folder in _visible(root) if folder.is_dir()]
    check_named(excluded, names)
    images: list[_Image] = []
    for name in names:
        if name not in excluded:
            images += _domain_images(root, name, val_fraction, test_fraction)
    if not images:
        raise UserError(f"no images found in {root}; {_WANTED}")
    label, labels = encode([image.label for image in images])
    domain, domains = encode([image.domain for image in images])
    files = tuple(image.file for image in images)
    said = (part for image in images for part in (image.file, image.stamp, image.split))
    return ImageTable(
        store=FolderStore(root.absolute(), files),
        store_rows=np.arange(len(images)),
        label=label,
        domain=domain,
        split=np.array([SPLITS.index(image.split) for image in images], dtype=np.int8),
        id=np.array(files, dtype=object),
        labels=labels,
        domains=domains,
        fingerprint=hash_of(said),
    )


def _domain_images(root: Path, domain: str, val_fraction: float, test_fraction: float) -> list[_Image]:
    images: list[_Image] = []
    for folder in _visible(root / domain):
        if not folder.is_dir():
            continue
        stamps = {f"{domain}/{folder.name}/{path.name}": _stamp(path) for path in _image_files(folder)}
        if len(stamps) < 2:
            raise UserError(
                f"class {domain}/{folder.name} in {root} has {'one image' if stamps else 'no images'}; "
                "at least 2 are needed: one to train on, one to test"
            )
        splits = _split(list(stamps), val_fraction, test_fraction)
        images += [_Image(domain, folder.name, file, stamps[file], splits[file]) for file in stamps]
    if not images:
        raise UserError(f"no images found in domain folder {root / domain}; {_WANTED}")
    return images


def _split(files: list[str], val_fraction: float, test_fraction: float) -> dict[str, str]:
    """Return the split of each file of a class: the first in hash order are test, the next val."""
    count = len(files)
    test = min(max(1, round(count * test_fraction)), count - 1)
    val = max(1, round(count * val_fraction)) if val_fraction else 0
    val = min(val, count - test - 1)
    order = sorted(files, key=lambda file: hash_of([file]))
    splits = ["test"] * test + ["val"] * val + ["train"] * (count - test - val)
    return dict(zip(order, splits, strict=True))


def _image_files(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower().removeprefix(".") in EXTENSIONS]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from None


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror}") from None
    return f"{stat.st_size} {stat.st_mtime_ns}"
