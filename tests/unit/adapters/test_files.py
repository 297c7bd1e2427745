"""Adapter folders."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from metalora.adapters.files import DESCRIPTION, TENSORS, read_adapter, write_adapter
from metalora.errors import UserError

STATE = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "deep" / "adapter", STATE, {"format": "tr"})
    return tmp_path / "deep" / "adapter"


def test_what_is_written_is_read(folder: Path) -> None:
    state, description = read_adapter(folder)
    assert description == {"file_version": 2, "format": "tr"}
    assert state.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    assert sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, TENSORS]
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_the_umask_decides_who_reads_an_adapter(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_adapter(tmp_path / "adapter", STATE, {"format": "tr"})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "adapter").iterdir()}
    assert modes == {TENSORS: 0o640, DESCRIPTION: 0o640}


@pytest.mark.parametrize("name", [DESCRIPTION, TENSORS])
def test_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"no adapter folder: {name} is missing"):
        read_adapter(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"file_version": 3}', '{"file_version": "1"}'])
def test_description_that_is_none(text: str, folder: Path) -> None:
    (folder / DESCRIPTION).write_text(text)
    with pytest.raises(UserError, match=r"cannot be read|has file version"):
        read_adapter(folder)


@pytest.mark.parametrize("left", [0, 7, 40, -1])
def test_truncated_tensors(left: int, folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:left])
    with pytest.raises(UserError, match="is damaged"):
        read_adapter(folder)
    description = json.loads((folder / DESCRIPTION).read_text())
    del description["sha256"]
    (folder / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(UserError, match="cannot be read"):
        read_adapter(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no adapter folder"):
        read_adapter(tmp_path / "none")


@pytest.mark.parametrize("step", ["safetensors.torch.save_file", "json.dumps", "os.fsync"])
def test_interrupted_save_keeps_the_old(step: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step, stop)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(folder, {"new": torch.zeros(1)}, {"format": "cp"})
    monkeypatch.undo()
    assert read_adapter(folder)[1]["format"] == "tr"
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_a_second_save_replaces_the_first(folder: Path) -> None:
    write_adapter(folder, {"new": torch.zeros(1)}, {"format": "cp"})
    assert list(read_adapter(folder)[0]) == ["new"]
    assert json.loads((folder / DESCRIPTION).read_text())["format"] == "cp"


def test_other_things_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="exists and is no adapter folder"):
            write_adapter(path, STATE, {})
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write_adapter(tmp_path / "empty", STATE, {})
    assert read_adapter(tmp_path / "empty")[0].keys() == STATE.keys()


def test_a_reader_gets_one_adapter_or_the_other_while_they_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "adapter"

    def write(number: int) -> None:
        write_adapter(path, {"a": torch.full((1000,), float(number))}, {"number": number})

    write(0)
    done = threading.Event()

    def write_on() -> None:
        number = 0
        while not done.is_set():
            write(number := number + 1)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_on)
        met = set()
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            state, description = read_adapter(path)
            assert (state["a"] == description["number"]).all()
            met.add(description["number"])
        done.set()
        writing.result()
    assert len(met) > 5


def test_saving_onto_links_replaces_them_and_leaves_nothing_beside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, target in (("one", folder), ("two", tmp_path / "empty"), ("three", tmp_path / "nowhere")):
        (tmp_path / name).symlink_to(target)
        write_adapter(tmp_path / name, STATE, {"format": "cp"})
        assert not (tmp_path / name).is_symlink()
        assert read_adapter(tmp_path / name)[1]["format"] == "cp"
    assert read_adapter(folder)[1]["format"] == "tr"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "one", "three", "two"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_no_file_can_have_are_refused(name: str, tmp_path: Path) -> None:
    for use in (read_adapter, lambda path: write_adapter(path, STATE, {})):
        with pytest.raises(UserError, match=r"adapter .* cannot be read: "):
            use(tmp_path / name)
