"""Some mutants of every surface, and properties of what YAML and JSON say."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from metalora.errors import UserError
from metalora.limits import limits
from metalora.reading import parse_json, read_yaml
from tests.fuzz.__main__ import main
from tests.fuzz.mutators import dump
from tests.fuzz.runner import run
from tests.fuzz.surfaces import SURFACES, place

MUTANTS = 15  # of a surface whose share is 1

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
MAPPINGS = st.dictionaries(st.text(), VALUES, max_size=4)


@pytest.mark.parametrize("name", SURFACES)
def test_no_mutant_shows_a_fault(name: str) -> None:
    result = run(place(name), 0, range(max(3, round(MUTANTS * SURFACES[name].share))))
    assert [
        f"{name}:0:{fault.number} {fault.verdict.value}: {fault.recipe} -> {fault.reason}" for fault in result.faults
    ] == []


def test_a_mutant_can_be_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--replay", "config:0:5"]) == 0
    assert capsys.readouterr().out.strip() in ("refused", "read right")


@settings(max_examples=200, deadline=None)
@given(MAPPINGS)
def test_json_is_read_as_it_was_meant(values: dict[str, Any]) -> None:
    assert parse_json(dump(values).encode(), "file") == values == json.loads(dump(values))


@settings(max_examples=100, deadline=None)
@given(MAPPINGS)
def test_yaml_is_read_as_it_was_meant(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    file = tmp_path_factory.mktemp("yaml") / "config.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert read_yaml(file) == values


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text("[]{}:,-&*!?|>'\"%@`#\n\t ~<=.a1e"))
def test_yaml_of_any_text_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("text") / "config.yaml"
    file.write_text(text, encoding="utf-8", newline="")
    said = _read_or_refuse(file)
    assert isinstance(said, dict) or (str(file) in said and len(said.splitlines()) == 1)


def _read_or_refuse(file: Path) -> dict[str, Any] | str:
    try:
        return read_yaml(file)
    except UserError as error:
        return str(error)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200))
def test_json_is_read_to_a_depth_that_is_said(depth: int) -> None:
    data = dump(_nested(depth)).encode()
    if depth <= limits().nesting:
        assert parse_json(data, "file") == _nested(depth)
    else:
        with pytest.raises(UserError, match=r"^file cannot be read: .*nested"):
            parse_json(data, "file")


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value
