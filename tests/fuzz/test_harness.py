"""The fuzzer notices every kind of fault, and finds a mutant again by its number."""

import shutil
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.judge import Verdict
from tests.fuzz.mutators import change_bytes, change_value, dump
from tests.fuzz.runner import run
from tests.fuzz.surfaces import config

PLANTED = {
    "right": Verdict.RIGHT,
    "refusing": Verdict.REFUSED,
    "silent": Verdict.SILENT,
    "taking_what_is_wrong": Verdict.SILENT,
    "raising": Verdict.TRACEBACK,
    "vague": Verdict.TRACEBACK,
    "talkative": Verdict.TRACEBACK,
    "warning": Verdict.TRACEBACK,
    "crashing": Verdict.TRACEBACK,
    "refusing_what_is_right": Verdict.TRACEBACK,
    "hanging": Verdict.HANG,
    "eating": Verdict.MEMORY,
    "eating_within_a_gate": Verdict.MEMORY,
    "writing_outside": Verdict.OUTSIDE,
    "writing_elsewhere": Verdict.OUTSIDE,
    "starting_a_program": Verdict.OUTSIDE,
}


@pytest.mark.parametrize(("name", "verdict"), PLANTED.items())
def test_a_fault_is_noticed(name: str, verdict: Verdict) -> None:
    heard = []
    result = run(f"tests.fuzz.planted:{name}", 0, range(1), hear=heard.append, limit=2.0)
    assert dict(result.counts) == {verdict: 1}
    assert [fault.verdict for fault in heard] == [verdict] * verdict.fault


def test_it_goes_on_after_a_child_was_ended() -> None:
    result = run("tests.fuzz.planted:crashing", 0, range(2))
    assert [fault.number for fault in result.faults] == [0, 1]


def test_a_mutant_follows_from_its_seed_and_number(tmp_path: Path) -> None:
    config.make(tmp_path / "seeds")
    (tmp_path / "outside").mkdir()
    made = []
    for number in (3, 3, 4):
        shutil.copytree(tmp_path / "seeds" / "some", tmp_path / "mutant")
        recipe = config.mutate(Random(f"config:0:{number}"), tmp_path / "mutant").recipe
        made.append((recipe, (tmp_path / "mutant" / "config.yaml").read_bytes()))
        shutil.rmtree(tmp_path / "mutant")
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("number", range(20))
def test_a_change_changes(number: int) -> None:
    value = {"a": [1, {"b": "text"}], "c": 0.5}
    data = dump(value).encode()
    assert change_bytes(Random(number), data)[0] != data
    changed, recipe = change_value(Random(number), {"a": [1, {"b": "text"}], "c": 0.5})
    assert dump(changed) != dump(value) or recipe.startswith("swap")
