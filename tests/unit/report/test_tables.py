"""The accuracy table as text."""

import io
import math
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from metalora.report.measures import measures, warnings_of
from metalora.report.tables import accuracy_table, measures_table


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


def report(images: int = 1000, **changes: Any) -> dict[str, Any]:
    original, adapted = {**_result(0), "linear": 0.588}, {**_result(0.1), "linear": 0.6}
    return {
        "format": "cp", "queries": images, "test_accuracy": 0.6, "chance": 0.25, "original": original,
        "adapted": adapted, **changes,
    }  # fmt: skip


def test_every_measure_is_shown_with_its_error() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(measures_table(report()))
    rows = [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines()]
    assert rows[0] == ["accuracy in % on all 1,000 test images"]
    assert ["measure", "original", "cp", "gain", "±"] in rows
    error = 100 * math.sqrt(0.588 * 0.412 / 1000 + 0.6 * 0.4 / 1000)
    assert ["linear classifier on the features", "58.8", "60.0", "+1.2", f"{error:.1f}"] in rows
    assert ["trained classifier", "60.0"] in rows
    assert ["always the most frequent label", "25.0"] in rows


def test_a_report_of_older_code_is_shown_too() -> None:
    old = report()
    del old["chance"], old["original"]["linear"], old["adapted"]["linear"]
    Console(file=io.StringIO()).print(measures_table(old))
    assert warnings_of(old) == []


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, []),
        ({"adapted": {**_result(0.1), "linear": 0.527}}, ["linear classifier on the features: the training lowered it "
                                                          "from 58.8% to 52.7%"]),
        ({"adapted": {**_result(0.1), "linear": 0.58}}, []),  # less than two standard errors
        ({"test_accuracy": 0.26}, ["the trained classifier is right for 26.0% of 1,000 test images, the most"]),
        ({"test_accuracy": 0.1}, ["the trained classifier is right for 10.0%"]),
        ({"images": 20, "test_accuracy": 0.4}, ["the trained classifier is right for 40.0%"]),
    ],
)  # fmt: skip
def test_what_fell_and_what_is_near_chance_is_told(changes: dict[str, Any], wanted: list[str]) -> None:
    lines = warnings_of(report(**changes))
    assert len(lines) == len(wanted)
    for line, begins in zip(lines, wanted, strict=True):
        assert line.startswith(begins)


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [(0.2, "no better than chance"), (0.26, "no better than chance"), (0.4, "too few images to tell"), (0.9, None)],
)
def test_too_few_images_are_told_from_no_better_than_chance(accuracy: float, said: str | None) -> None:
    """On 20 images, where the most frequent label alone is right for 25 %."""
    lines = warnings_of(report(images=20, test_accuracy=accuracy))
    assert [said in line for line in lines if said] == ([] if said is None else [True])


def test_the_errors_are_those_of_simulated_gains() -> None:
    measure = measures(report())[1]
    generator = np.random.default_rng(0)
    gains = [generator.binomial(1000, 0.6) / 1000 - generator.binomial(1000, 0.588) / 1000 for _ in range(4000)]
    assert measure.error(1000) == pytest.approx(np.std(gains), rel=0.05)
