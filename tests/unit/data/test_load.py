import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metalora.config import DataConfig
from metalora.data import load_table
from metalora.errors import UserError

LOAD_EMBEDDED = """
from metalora.config import DataConfig
from metalora.data import load_table
table = load_table(DataConfig())
print(table.fingerprint, len(table.read(9999)))
"""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "no/such/place",
            r"data: no such file or folder: 'no/such/place' \(here: .*\), and no folder 'no/such' \(--data\)",
        ),
        ("embeded", r"data: no such file or folder: 'embeded' \(here: .*\), did you mean 'embedded'\? \(--data\)"),
        (
            "/a/very/long/place/of/many/letters/embeded",
            r"embeded', and no folder '/a/very.*', did you mean 'embedded'\?",
        ),
    ],
)
def test_a_source_that_is_not_there(data, message):
    with pytest.raises(UserError, match=message):
        load_table(DataConfig(data=data))


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(
        UserError, match=r"data\.xlsx' is no \.parquet, \.csv or \.tsv file; wanted: embedded, a folder"
    ):
        load_table(DataConfig(data=str(tmp_path / "data.xlsx")))


def test_a_place_that_may_not_be_looked_at(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(UserError, match=r"cannot read data '.*/closed': Permission denied"):
        load_table(DataConfig(data=str(tmp_path / "closed")))


def test_the_home_folder_is_understood(make_tree, make_rows, write, tmp_path, monkeypatch):
    make_tree({"a/x": 4, "a/y": 4})
    write(make_rows())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_table(DataConfig(data="~/tree"))) == 8
    assert len(load_table(DataConfig(data="~/data.parquet"))) == 28


def test_threads_may_load_at_once(make_rows, write, empty_cache):
    path = write(make_rows())
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda _: load_table(DataConfig(data=path)), range(4)))
    assert len({table.fingerprint for table in tables}) == 1
    assert len({table.read(27) for table in tables}) == 1
    folders = [path.name.partition("-")[0] for path in (empty_cache / "data").glob("[!.]*")]
    assert sorted(folders) == ["images", "verified"]


def test_processes_may_load_at_once_and_get_what_another_cache_holds(embedded, cache, empty_cache):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", LOAD_EMBEDDED]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert printed == [f"{embedded.fingerprint} {len(embedded.read(9999))}\n"] * 2
    (made,) = (empty_cache / "data").glob("*/tasks.parquet")
    assert made.read_bytes() == (cache / "data" / made.parent.name / made.name).read_bytes()
    folders = [path.name.partition("-")[0] for path in (empty_cache / "data").glob("[!.]*")]
    assert sorted(folders) == ["embedded", "images", "verified"]
