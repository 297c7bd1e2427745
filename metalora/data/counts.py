"""How many images a table has, by domain, class and split, in numbers and in words."""

import numpy as np

from metalora.data.names import printable
from metalora.data.table import SPLITS, IntArray, Table

IMBALANCE = 10  # times as many training images, of the largest class, are worth a line


def counts(table: Table) -> IntArray:
    """Return the numbers of images, (domains, classes, splits)."""
    found = np.zeros((len(table.domains), len(table.labels), len(SPLITS)), dtype=np.int64)
    np.add.at(found, (table.domain, table.label, table.split), 1)
    return found


def training_counts(table: Table) -> IntArray:
    """Return the number of training images of each class, (classes,), without held-out domains."""
    return np.bincount(table.label[table.rows("train")], minlength=len(table.labels))


def counted(count: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun: 1 image, 1,000 images."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def described(table: Table) -> str:
    """Return how many images, classes and domains there are, in a line."""
    splits = ", ".join(f"{len(table.rows(split)):,} {split}" for split in SPLITS)
    held = sum(len(table.holdout_rows(split)) for split in SPLITS)
    more = f" ({held:,} more in held-out ones)" if held else ""
    domains = counted(len(table.domains) - len(table.holdout), "domain")
    return f"{splits} images{more} of {counted(len(table.labels), 'class', 'classes')} in {domains}"


def imbalance(table: Table) -> str | None:
    """Return which class has fewest training images, in a line; None if none has `IMBALANCE` times as many or more."""
    found = training_counts(table)
    if not len(found) or found.max() < IMBALANCE * max(1, found.min()):
        return None
    (least, few), (most, many) = ((table.labels[i], int(found[i])) for i in (found.argmin(), found.argmax()))
    return f"{printable(least)!r} has {counted(few, 'training image')}, {printable(most)!r} has {many:,}"
