"""Checks that a data set can be trained and tested on, domain by domain."""

from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np

from metalora.data.table import SPLITS, Table
from metalora.errors import UserError, given_as
from metalora.registry import nearest


def check_named(named: Collection[str], domains: Collection[str], setting: str = "exclude_domains") -> None:
    """Check that the domains that a setting keeps from training exist, and that some domain is left.

    Raises:
        UserError: a domain is unknown (the message lists the choices), or none would be left.
    """
    for name in named:
        if name not in domains:
            raise UserError(
                f"{setting}: unknown domain {name!r}{nearest(name, domains)} (domains: {', '.join(sorted(domains))})"
                f"{given_as(setting)}"
            )
    if named and set(named) == set(domains):
        raise UserError(f"{setting} leaves out all of {', '.join(sorted(domains))}; one must stay{given_as(setting)}")


def exclude_domains(table: Table, excluded: Collection[str]) -> Table:
    """Return the table without some domains, and without the labels that only these have.

    Raises:
        UserError: a domain is unknown, or none would be left.
    """
    if not excluded:
        return table
    check_named(excluded, table.domains)
    left_out = [table.domains.index(name) for name in excluded]
    rest = table.select(~np.isin(table.domain, left_out))
    labels, label = np.unique(rest.label, return_inverse=True)
    domains, domain = np.unique(rest.domain, return_inverse=True)
    return replace(
        rest,
        label=label.astype(np.int64),
        labels=tuple(table.labels[i] for i in labels),
        domain=domain.astype(np.int64),
        domains=tuple(table.domains[i] for i in domains),
    )


def hold_out(table: Table, held_out: Collection[str]) -> Table:
    """Return the table with some domains held out: `Table.rows` leaves them out, `holdout_rows` returns them.

    Raises:
        UserError: a domain is unknown, none would be left to train on, or only held-out domains have some label.
    """
    check_named(held_out, table.domains, "holdout_domains")
    table = replace(table, holdout=tuple(sorted(set(held_out))))
    rows = np.concatenate([table.rows(split) for split in SPLITS])
    untrained = np.setdiff1d(np.arange(len(table.labels)), table.label[rows])
    if len(untrained):
        names = _list(table.labels[i] for i in untrained)
        raise UserError(f"holdout_domains: no domain that is trained on has {names}{given_as('holdout_domains')}")
    return table


def check(table: Table, allow_different_labels: bool) -> None:
    """Check that a table can be trained and tested on.

    Args:
        table: The images, after images and domains were left out.
        allow_different_labels: Whether domains may lack labels of other domains.

    Raises:
        UserError: there are fewer than two labels; a label has one image only, or none in the train split; a domain
            has no train or test images, or no val images where other domains have some; the domains' labels differ.
    """
    if len(table.labels) < 2:
        raise UserError(f"the data has {len(table.labels)} label ({_list(table.labels)}); at least 2 are needed")
    _check_labels(table)
    _check_splits(table)
    if not allow_different_labels:
        _check_label_sets(table)


def _check_labels(table: Table) -> None:
    counts = np.bincount(table.label, minlength=len(table.labels))
    trained = np.bincount(table.label[table.rows("train")], minlength=len(table.labels))
    for name, count, train in zip(table.labels, counts, trained, strict=True):
        if count < 2:
            raise UserError(
                f"label {name!r} has {'one image' if count else 'no image left'}; "
                "at least 2 are needed: one to train on, one to test"
            )
        if not train:
            raise UserError(f"label {name!r} has {count} images but none in the train split; 1 is needed")


def _check_splits(table: Table) -> None:
    counts = np.zeros((len(table.domains), len(SPLITS)), dtype=np.int64)
    np.add.at(counts, (table.domain, table.split), 1)
    for split, column in zip(SPLITS, counts.T, strict=True):
        if split == "val" and not column.any():
            continue
        for name, count in zip(table.domains, column, strict=True):
            if not count:
                wanted = "all domains or none have some" if split == "val" else "each domain needs some"
                raise UserError(f"domain {name!r} has no {split} images; {wanted}")


def _check_label_sets(table: Table) -> None:
    held = np.zeros((len(table.domains), len(table.labels)), dtype=bool)
    held[table.domain, table.label] = True
    usual = held.sum(axis=0) * 2 >= len(table.domains)
    for name, row in zip(table.domains, held, strict=True):
        lacks = _list(table.labels[i] for i in np.flatnonzero(usual & ~row))
        extra = _list(table.labels[i] for i in np.flatnonzero(row & ~usual))
        if lacks or extra:
            found = [f"lacks {lacks}"] * bool(lacks) + [f"has {extra} that most others lack"] * bool(extra)
            raise UserError(
                f"domain {name!r} {' and '.join(found)}; all domains must share one label set "
                f"unless allow_different_labels is true{given_as('allow_different_labels')}"
            )


def _list(names: Iterable[str], most: int = 5) -> str:
    quoted = [repr(name) for name in names]
    more = f" and {len(quoted) - most} more" if len(quoted) > most else ""
    return ", ".join(quoted[:most]) + more
