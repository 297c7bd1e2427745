import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metalora.config import from_dict
from metalora.errors import UserError
from pipelines.run.claim import LOCK, check_name, claimed, named_run

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("name", ["a", "café 3", "lr-sweep", "[b]", "$x", "名前", "a.b", "a@b", "x" * 200, "5%"])
def test_ordinary_names_will_do(name):
    check_name(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lr:sweep", "it holds ':'"), ("a/b", "it holds '/'"), ("a\\b", "it holds"), ("a\nb", r"it holds '\\n'"),
        ("a\0b", "it holds"), ("..", "plain folder name"), (".x", "plain folder name"), ("-x", "plain folder name"),
        ("", "plain folder name"), ("  ", "plain folder name"), ("x" * 201, "200 bytes"), ("名" * 70, "200 bytes"),
    ],
)  # fmt: skip
def test_a_name_that_some_use_of_it_refuses_is_refused_at_once(name, said):
    with pytest.raises(UserError, match=said):
        check_name(name)


def test_a_claimed_folder_is_nobody_else_s(tmp_path):
    with claimed(tmp_path / "runs", "a", resume=False) as folder:
        assert folder == tmp_path / "runs" / "a"
        for resume in (False, True):
            with pytest.raises(UserError, match=r"run 'a' in .* is running in another command"):
                _claim(tmp_path / "runs", "a", resume)
        (folder / "config.yaml").touch()
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    with pytest.raises(UserError, match=r"run 'a' exists in .*: choose another --run-name, or --resume a"):
        _claim(tmp_path / "runs", "a", resume=False)
    _claim(tmp_path / "runs", "a", resume=True)


def test_a_made_up_name_gives_way(tmp_path):
    with claimed(tmp_path, "a", False, made_up=True) as first, claimed(tmp_path, "a", False, made_up=True) as second:
        assert (first.name, second.name) == ("a", "a-2")


def test_what_is_refused_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    for output in (tmp_path / "new" / "runs", tmp_path / "there"):
        with pytest.raises(UserError, match="bad"), claimed(output, "a", resume=False):
            raise UserError("bad")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_of_many_processes_at_once_one_gets_a_name(tmp_path):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=_race, args=(tmp_path, start, results)) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    got = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(got) == ["a", *["refused"] * 5]


def test_the_lock_of_a_process_that_died_holds_nobody(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from pipelines.run.claim import claimed\n"
        "with claimed(Path(sys.argv[1]), 'a', False) as folder: os._exit(9)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(arguments, cwd=ROOT, check=False).returncode == 9
    assert (tmp_path / "a" / LOCK).exists()
    _claim(tmp_path, "a", resume=False)  # nothing was written: the name is free


def test_a_made_up_name_is_a_folder_name_whatever_it_is_made_of(tmp_path):
    config = from_dict({"cluster": {"output": str(tmp_path)}, "tracking": {"tracking_uri": "none"}})
    with named_run(config, False, "my:space ", "tune") as (named, folder):
        assert folder.name.startswith("my_space_-resnet20-")
        assert named.tracking.run_name == folder.name
        check_name(folder.name)


def _claim(output: Path, name: str, resume: bool) -> None:
    with claimed(output, name, resume):
        pass


def _race(output: Path, start, results) -> None:
    start.wait()
    try:
        with claimed(output, "a", resume=False) as folder:
            (folder / "mine").touch()
            results.put(folder.name)
            time.sleep(0.3)
    except UserError:
        results.put("refused")
