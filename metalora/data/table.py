"""The table that every source is read into: encoded images, label, domain, split."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from metalora.config import DataConfig

SPLITS = ("train", "val", "test")

IntArray = npt.NDArray[np.int64]
SplitArray = npt.NDArray[np.int8]
BoolArray = npt.NDArray[np.bool_]


class Store(Protocol):
    """Reads encoded images by row. It is sent to worker processes, so its pickle holds no image."""

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row."""
        ...

    def name(self, row: int) -> str:
        """Return the name of a row in error messages: a file, or a file and a row of it."""
        ...


@dataclass(frozen=True, eq=False)
class Table:
    """The N images of a data set, without their bytes.

    Attributes:
        store: Reads the encoded images.
        store_rows: (N,) row of each image in the store; rows that were left out are missing.
        label: (N,) index into ``labels``.
        domain: (N,) index into ``domains``.
        split: (N,) index into `SPLITS`.
        id: (N,) strings.
        labels: Sorted label names.
        domains: Sorted domain names.
        fingerprint: Hash of the table's content: images, labels, domains, splits, ids.
        skipped: Names of the images that were left out because they cannot be decoded.
        ignored: Names of the files that were left out because they are no images, or lie in the wrong folder.
        missing: What is wrong with each file that a row names and that cannot be read, in a line.
        max_pixels: Largest number of pixels of an image that is decoded.
        holdout: Names of the domains that are never trained on, only evaluated.
    """

    store: Store
    store_rows: IntArray
    label: IntArray
    domain: IntArray
    split: SplitArray
    id: npt.NDArray[np.object_]
    labels: tuple[str, ...]
    domains: tuple[str, ...]
    fingerprint: str
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    max_pixels: int = DataConfig().max_pixels
    holdout: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.store_rows)

    def rows(self, split: str) -> IntArray:
        """Return the rows of a split ("train", "val" or "test"), ascending, without the held-out domains."""
        return np.flatnonzero((self.split == SPLITS.index(split)) & ~self._held_out()).astype(np.int64)

    def holdout_rows(self, split: str) -> IntArray:
        """Return the rows of a split in the held-out domains, ascending."""
        return np.flatnonzero((self.split == SPLITS.index(split)) & self._held_out()).astype(np.int64)

    def count(self, split: str) -> dict[str, int]:
        """Return the number of images of each domain in a split, without the held-out domains."""
        counts = np.bincount(self.domain[self.rows(split)], minlength=len(self.domains))
        return {name: int(n) for name, n in zip(self.domains, counts, strict=True) if name not in self.holdout}

    def _held_out(self) -> BoolArray:
        return np.isin(self.domain, [self.domains.index(name) for name in self.holdout])

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row."""
        return self.store.read(int(self.store_rows[row]))

    def name(self, row: int) -> str:
        """Return the name of a row in error messages."""
        return self.store.name(int(self.store_rows[row]))

    def select(self, keep: BoolArray) -> "Table":
        """Return the table of the rows where ``keep`` (N,) is true, with its own fingerprint.

        ``labels`` and ``domains`` stay as they are, so indices keep their meaning.
        """
        return replace(
            self,
            store_rows=self.store_rows[keep],
            label=self.label[keep],
            domain=self.domain[keep],
            split=self.split[keep],
            id=self.id[keep],
            fingerprint=hash_of([self.fingerprint, np.packbits(keep).tobytes()]),
        )


def encode(names: Sequence[str]) -> tuple[IntArray, tuple[str, ...]]:
    """Return the index of each name among the sorted distinct names, and these names."""
    distinct = tuple(sorted(set(names)))
    index = {name: i for i, name in enumerate(distinct)}
    return np.array([index[name] for name in names], dtype=np.int64), distinct


def hash_of(parts: Iterable[str | bytes]) -> str:
    """Return a hash (32 hex digits) of a sequence; it depends on where each part ends."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
