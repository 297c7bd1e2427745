import os
import tempfile
from pathlib import Path

from pipelines.run.folder import run_tags
from pipelines.surroundings import LONGEST, usable_surroundings


def test_a_long_tmpdir_is_reached_by_a_short_link(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with usable_surroundings():
        short = os.environ["TMPDIR"]
        assert len(short) <= LONGEST
        assert tempfile.gettempdir() == short
        assert Path(tempfile.mkdtemp()).resolve().parent == long
    assert os.environ["TMPDIR"] == str(long)
    assert not Path(short).is_symlink()


def test_a_short_tmpdir_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")
    with usable_surroundings():
        assert os.environ["TMPDIR"] == "/tmp"


def test_a_user_without_home_gets_one(tmp_path, monkeypatch):
    def nobody(*arguments):
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with usable_surroundings():
        assert Path.home() == tmp_path / f"metalora-{os.getuid()}"
        assert Path.home().is_dir()
    assert "HOME" not in os.environ


def test_a_user_without_a_name_is_a_number(monkeypatch):
    def nobody(*arguments):
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert run_tags("train", "train")["mlflow.user"] == str(os.getuid())
