"""The fuzzer notices every kind of fault, and finds a mutant again by its number."""

import shutil
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.judge import Verdict
from tests.fuzz.mutators import change_bytes, change_value, dump
from tests.fuzz.planted import ENDING, FAULTS
from tests.fuzz.runner import Fault, run
from tests.fuzz.surfaces import config

MANY = 150  # each of the planted readers is drawn then


def test_faults_are_noticed() -> None:
    # none of these hangs, and on a busy machine any may be slow
    result = run("tests.fuzz.planted:lasting", 0, range(MANY), limit=60.0)
    met = {fault.recipe.removeprefix("one: "): fault.verdict for fault in result.faults}
    due = {name: verdict for name, (_, _, verdict) in FAULTS.items() if name not in ENDING}
    assert met == {name: verdict for name, verdict in due.items() if verdict.fault}
    assert len({fault.recipe: 0 for fault in result.faults}) == len({(f.recipe, f.verdict): 0 for f in result.faults})
    assert result.counts[Verdict.RIGHT] > 0
    assert result.counts[Verdict.REFUSED] > 0
    assert result.counts.total() == MANY


def test_a_reader_that_hangs_is_ended() -> None:
    result = run("tests.fuzz.planted:hanging", 0, range(1), limit=1.0)
    assert [fault.verdict for fault in result.faults] == [Verdict.HANG]


def test_it_goes_on_after_a_crash() -> None:
    heard: list[Fault] = []
    result = run("tests.fuzz.planted:crashing", 0, range(2), hear=heard.append)
    assert [(fault.number, fault.verdict) for fault in heard] == [(0, Verdict.TRACEBACK), (1, Verdict.TRACEBACK)]
    assert result.faults == heard


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
