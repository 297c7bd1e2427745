import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.run.folder import run_tags
from pipelines.surroundings import LONGEST, keep_compiled, usable_surroundings

ROOT = Path(__file__).parents[3]


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


def test_importing_pipelines_does_no_work(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR_")}
    code = "import os, pipelines.cli; print(sorted(name for name in os.environ if name.startswith('TORCHINDUCTOR_')))"
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_a_command_says_where_compilations_are_kept_before_the_compiler_is_imported(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR_")}
    code = """
import sys
from pipelines.cli import run

def command():
    assert "torch" not in sys.modules
    import torch._functorch.config as functorch
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    print(functorch.autograd_cache_allow_custom_autograd_functions, cache_dir())

run(command)
"""
    environment = {**clean, "METALORA_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    allowed, place = done.stdout.split()
    assert allowed == "True"
    assert Path(place).parent == tmp_path / "compiled"


def test_a_command_leaves_nothing_of_it_behind(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with usable_surroundings():
        assert "TORCHINDUCTOR_CACHE_DIR" in os.environ
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    with usable_surroundings():
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    keep_compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"


def test_every_process_of_ray_calls_it_first(monkeypatch):
    """Nothing that they import before has the compiler in it: see `test_imports`."""
    from pipelines.backend import worker
    from pipelines.campaign import trial

    def called() -> None:
        raise InterruptedError("called first")

    monkeypatch.setattr(worker, "keep_compiled", called)
    monkeypatch.setattr(trial, "keep_compiled", called)
    for act, count in ((worker.train_rank, 1), (trial.run_trial, 2), (trial.share._function, 5)):
        with pytest.raises(InterruptedError):
            act(*[None] * count)
