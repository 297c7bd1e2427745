import logging
from pathlib import Path

import pytest

from metalora.train.reporter import Progress
from pipelines import cli
from pipelines.backend import cluster as backend
from pipelines.command_line import make_parser, parse
from pipelines.run.console import ProgressDisplay, inform, terminal, warn
from pipelines.verbosity import LOGGERS, is_quiet, log_level


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def during(monkeypatch):
    """Run a command whose work is the given function, and the rest the command line's."""

    def run(line, work):
        def main(arguments):
            parse(make_parser("metalora train", ""), arguments)
            work()

        monkeypatch.setattr("pipelines.commands.train.main", main)
        cli.main(["train", *line])

    return run


def levels():
    return {name: logging.getLogger(name).level for name in LOGGERS}


def speak():
    console = terminal()
    inform(console, "begins")
    with ProgressDisplay(console) as display:
        display.show(Progress("train", 1, 1, epoch=1, epochs=1))
        display.tell({"best/epoch": 1, "best/val/knn3": 0.5, "best/kept": 1})
        display.say("one is lost")
    warn(console, "odd")
    console.print("result")


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_leaves_results_and_warnings(during, capsys, flag):
    during([flag], speak)
    assert capsys.readouterr().out.split("\n") == ["one is lost", "odd", "result", ""]
    assert not is_quiet()  # it held for this command
    during([], speak)
    said = capsys.readouterr().out
    assert "begins" in said
    assert "epoch 1/1" in said
    assert "keeping the weights of epoch 1" in said


def log():
    for name in ("metalora.train", "ray.train", "mlflow.store"):
        logging.getLogger(name).debug("a detail of %s", name)
        logging.getLogger(name).warning("a warning of %s", name)
    logging.getLogger("matplotlib").debug("a detail of another library")


def test_a_log_level_holds_for_three_libraries_and_one_command(during, capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # pytest's own; a command has none
    for name in ("ray", "mlflow"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    before = levels()
    during(["--log-level", "debug"], log)
    said = capsys.readouterr().err
    for name in ("metalora.train", "ray.train", "mlflow.store"):
        assert f"DEBUG {name}: a detail of {name}\n" in said
        assert f"WARNING {name}: a warning of {name}\n" in said
    assert "another library" not in said
    assert levels() == before
    assert root.handlers == []
    assert log_level() is None
    during(["--log-level=error"], log)
    assert capsys.readouterr().err == ""


def test_without_a_log_level_nothing_is_set(during):
    before = levels(), list(logging.getLogger().handlers)
    during([], lambda: None)
    assert (levels(), logging.getLogger().handlers) == before


def test_another_log_level_is_refused(refused):
    said = refused(["train", "--log-level", "loud"])
    assert said.startswith("argument --log-level: invalid choice: 'loud'")
    assert "debug" in said


@pytest.mark.parametrize(
    ("line", "level", "heard"), [([], logging.ERROR, False), (["--log-level", "info"], logging.INFO, True)]
)
def test_ray_and_its_workers_are_told(during, monkeypatch, line, level, heard):
    given = {}
    monkeypatch.setattr(backend.ray, "init", lambda **settings: given.update(settings))
    monkeypatch.setattr(backend.ray, "cluster_resources", lambda: {"CPU": 8})
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def work():
        with backend.cluster(backend.ClusterConfig(workers=1)):
            pass

    during(line, work)
    assert (given["logging_level"], given["log_to_driver"]) == (level, heard)


@pytest.mark.parametrize(
    "command", ["train", "tune", "evaluate", "predict", "download", "data", "report", "reproduce", "seeds", "methods"]
)
def test_every_command_has_both_options(capsys, command):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "-q, --quiet" in said
    assert "--log-level {debug,info,warning,error}" in said


def test_a_quiet_training_prints_its_results(settings, capsys):
    cli.main([*settings("--run-name", "mine"), "--quiet"])
    said = capsys.readouterr().out
    assert not [line for line in said.splitlines() if line.startswith(("data ", "epoch ", "training "))]
    assert "K = 3" in said
    assert "predict   metalora predict mine" in said
    assert "quiet:" not in Path("runs/mine/config.yaml").read_text()
