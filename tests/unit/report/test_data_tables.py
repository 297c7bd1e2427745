import io

import numpy as np
from rich.console import Console

from metalora.report.data_tables import class_table, domain_table

SPLITS = ("train", "val", "test")


def _words(table: object) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=200, markup=False)
    console.print(table)
    return [line.split() for line in console.file.getvalue().splitlines() if line.split()]  # type: ignore[attr-defined]


def test_domains_are_counted_with_all_of_them_below() -> None:
    counts = np.arange(18).reshape(3, 2, 3) * 100
    rows = _words(domain_table(["[a]", "b", "c"], SPLITS, counts, ["b"]))
    assert rows[1] == ["domain", "train", "val", "test", "all"]
    assert rows[3:] == [
        ["[a]", "300", "500", "700", "1,500"],
        ["b", "(held", "out)", "1,500", "1,700", "1,900", "5,100"],
        ["c", "2,700", "2,900", "3,100", "8,700"],
        ["all", "domains", "4,500", "5,100", "5,700", "15,300"],
    ]


def test_of_many_classes_the_smallest_and_largest_are_listed() -> None:
    train = np.random.default_rng(0).permutation(21)
    counts = np.stack([train, train * 0, train * 0 + 1], axis=-1)[None]
    names = [f"c{number}" for number in train]
    rows = _words(class_table(names, SPLITS, counts))
    listed = [row[0] for row in rows[3:]]
    assert listed == ["c0", "c1", "c2", "c3", "c4", "...", "c16", "c17", "c18", "c19", "c20"]
    assert rows[8] == ["...", "11", "classes", "between"]
    few = _words(class_table(names[:20], SPLITS, counts[:, :20]))
    assert [row[0] for row in few[3:]] == names[:20]
