"""The accuracy table as text."""

import io
import re
from typing import Any

from rich.console import Console

from metalora.report.tables import accuracy_table


def _result(shift: float) -> dict[str, Any]:
    votes = {"uniform": {"5": 0.5 + shift, "10": 0.25}, "weighted": {"5": 0.75, "10": 0.5 - shift}}
    return {
        "overall": votes,
        "by_domain": {"sketch": votes, "photo[x]": votes},
        "queries": {"sketch": 60, "photo[x]": 40},
    }


def test_the_table_reads_well_at_100_columns() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(accuracy_table(_result(0), _result(0.1234), "multi_lora"))
    lines = console.export_text().splitlines()

    assert "k-NN accuracy in %" in lines[0]
    assert all(len(line) <= 100 for line in lines)
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert ["task", "images", "original", "multi_lora", "gain", "original", "multi_lora", "gain"] in rows
    assert ["overall", "100", "50.0", "62.3", "+12.3", "25.0", "25.0", "0.0"] in rows
    assert ["overall", "100", "75.0", "75.0", "0.0", "50.0", "37.7", "-12.3"] in rows
    names = [row[0] for row in rows if row[0] in ("uniform vote", "weighted vote", "overall", "sketch", "photo[x]")]
    assert names == [
        "uniform vote",
        "overall",
        "sketch",
        "photo[x]",
        "weighted vote",
        "overall",
        "sketch",
        "photo[x]",
    ]


def test_held_out_domains_follow_with_either_gallery() -> None:
    def result(shift: float) -> dict[str, Any]:
        return {**_result(shift), "holdout": {"seen": _result(shift / 2), "unseen": _result(-shift)}}

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(accuracy_table(result(0), result(0.1), "tr"))
    rows = [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines()]
    uniform = [row for row in rows if len(row) == 8][1:10]
    assert [row[0] for row in uniform] == [
        *("overall", "sketch", "photo[x]", "held out", "sketch", "photo[x]"),
        *("held out, own gallery", "sketch", "photo[x]"),
    ]
    assert [row[4] for row in uniform] == ["+10.0"] * 3 + ["+5.0"] * 3 + ["-10.0"] * 3
