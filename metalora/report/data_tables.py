"""Tables of how many images a data set has."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

Array = np.ndarray[Any, np.dtype[Any]]

MOST_ROWS = 20  # classes that are all listed; of more, the smallest and the largest are
ENDS = 5


def domain_table(domains: Sequence[str], splits: Sequence[str], counts: Array, held_out: Collection[str]) -> Table:
    """Return the images of each domain and split.

    Args:
        domains: Names of the domains.
        splits: Names of the splits.
        counts: (domains, classes, splits), numbers of images.
        held_out: Domains that are not trained on.
    """
    names = [f"{name} (held out)" if name in held_out else name for name in domains]
    by_domain = counts.sum(axis=1)
    table = _table("images by domain", "domain", splits)
    for name, row in zip(names, by_domain, strict=True):
        _add(table, name, row)
    if len(domains) > 1:
        table.add_section()
        _add(table, "all domains", by_domain.sum(axis=0), "bold")
    return table


def class_table(classes: Sequence[str], splits: Sequence[str], counts: Array) -> Table:
    """Return the images of each class and split; of many classes, of those with fewest and most training images.

    Args:
        classes: Names of the classes.
        splits: Names of the splits, that to train on first.
        counts: (domains, classes, splits), numbers of images.
    """
    by_class = counts.sum(axis=0)
    order = np.argsort(by_class[:, 0], kind="stable")
    table = _table("images by class", "class", splits)
    if len(classes) <= MOST_ROWS:
        for name, row in zip(classes, by_class, strict=True):
            _add(table, name, row)
        return table
    for number in order[:ENDS]:
        _add(table, classes[number], by_class[number])
    table.add_row(Text(f"... {len(classes) - 2 * ENDS:,} classes between", style="italic"))
    for number in order[-ENDS:]:
        _add(table, classes[number], by_class[number])
    return table


def _table(title: str, first: str, splits: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for name in (*splits, "all"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _add(table: Table, name: str, row: Array, style: str = "") -> None:
    table.add_row(Text(name), *(Text(f"{count:,}") for count in (*row, row.sum())), style=style)
