"""The original's results are read from what the trials left."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.campaign.original import Original, read_original

QUERIES = {"paper": 4, "slate": 4}


def write(folder: Path, original: Any) -> Path:
    folder.mkdir()
    (folder / "knn.json").write_text(json.dumps({"format": "tr", "original": original, "adapted": {}}))
    return folder


def results() -> dict[str, Any]:
    votes = {"uniform": {"5": 0.5, "10": 0.25}, "weighted": {"5": 0.75}}
    slate = {"uniform": {"10": 1.0}, "weighted": {}}
    return {"overall": votes, "by_domain": {"slate": slate}, "queries": QUERIES, "linear": 0.625}


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("test/knn10", 0.25),
        ("test/knn5_weighted", 0.75),
        ("test/knn10/slate", 1.0),
        ("test/knn10/paper", None),
        ("test/knn7", None),
        ("test/linear", 0.625),
        ("test/accuracy", None),
        ("parameters", None),
    ],
)
def test_the_metric_is_found(tmp_path: Path, metric: str, value: float | None) -> None:
    assert read_original([write(tmp_path / "a", results())], metric) == Original(value, QUERIES)


@pytest.mark.parametrize("damage", [{"overall": {"uniform": {"10": 2}}}, {"queries": {"paper": -1}}, {"by_domain": 3}])
def test_a_damaged_file_is_passed_over(tmp_path: Path, damage: dict[str, Any]) -> None:
    damaged = write(tmp_path / "a", {**results(), **damage})
    (tmp_path / "empty").mkdir()
    assert read_original([damaged, tmp_path / "empty"], "test/knn10") == Original()
    assert read_original([damaged, write(tmp_path / "b", results())], "test/knn10").value == 0.25
