import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import metalora
from metalora.tracking.mlflow_tracker import TIMEOUT_SECONDS, MlflowTracker
from pipelines.cli import main

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """Away from the user's folders, cache and cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "cache"))
    for name in ("RAY_ADDRESS", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
        monkeypatch.delenv(name)


def test_the_installed_command_ends_with_status_2_and_one_line():
    code = "from pipelines.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "trian"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    commands = "train, tune, evaluate, predict, download, data, report, reproduce, seeds, methods, bench"
    assert done.stderr == f"metalora: error: unknown command 'trian', did you mean 'train'? (commands: {commands})\n"
    assert done.stdout == ""


@pytest.mark.parametrize("argument", ["--version", "-V"])
def test_the_version_is_told(capsys, argument):
    main([argument])
    assert capsys.readouterr().out == f"metalora {metalora.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_usage_lists_the_commands(capsys, arguments):
    main(arguments)
    assert "train" in capsys.readouterr().out


def test_an_interrupt_ends_with_status_130(capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.commands.train.main", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["train"])
    assert end.value.code == 130
    assert capsys.readouterr().err == "metalora: interrupted\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--btch-size", "3"), "unknown option '--btch-size', did you mean '--batch-size'?"),
        (("--format", "trr"), "unknown adapter format 'trr', did you mean 'tr'? (choices: "),
        (("--rank", "0"), "adapter.rank = '0': "),
        (("--rank", "1000"), "module 'net.stages.0.0.conv1': rank 1000 does not fit: it takes ranks from 1 to "),
        (("--format", "tr", "--rank", "100000"), "module 'net.stages.0.0.conv1': rank 100000 does not fit"),
        (("--format", "cp", "--rank", "100000000000"), "module 'net.stages.0.0.conv1': rank 100000000000 does not fit"),
        (("--target-modules", "nosuch"), "target_modules: 'nosuch' matches no module"),
        (("--target-modules", "re:("), "module pattern 're:(' is no regular expression: "),
        (("--exclude-modules", "nosuch"), "exclude_modules: 'nosuch' matches no module"),
        (("--backbone", "resnet21"), "unknown backbone 'resnet21', did you mean 'resnet20'?"),
        (("--data", "nowhere"), "data: no such file or folder: 'nowhere' (here: {cwd})"),
        (("--batch-size", "800"), "batch_size 800 exceeds the 28 images of the train split: lower it (--batch-size)"),
        (
            ("--objective", "episodic", "--batch-size", "10"),
            "batch_size 10 must be a multiple of 32, for whole episodes: 8 classes x 4 images x ",
        ),
        (("--knn", "29"), "knn 29 is more than the 28 images of the train split"),
        (("--knn", "0"), "evaluate.knn"),
        (
            (
                "--objective",
                "episodic",
                "--objective.tasks",
                "one",
                "--objective.classes",
                "2",
                "--callbacks",
                "in_turn",
                "--format",
                "lora",
            ),
            "callback in_turn needs a format with generated seeds, and two tasks",
        ),
        (
            ("--workers", "4096", "--batch-size", "4096"),
            "4096 workers with 1 CPUs each need 4096 CPUs, this machine has",
        ),
        (("--tracking-uri", "file:mlruns"), "tracking_uri 'file:mlruns': wanted sqlite:///FILE"),
        (("--tracking-uri", "mlruns"), "tracking_uri 'mlruns': wanted sqlite:///FILE"),
        (("--resume", "nix"), "no run 'nix' in {cwd}/runs (there: none)"),
        (("--run-name", "a/b"), "run_name 'a/b' must be a plain folder name"),
        (("--config", "no.yaml"), "config file: no such file or folder: 'no.yaml' (here: {cwd}) (--config)"),
        (("--output", "/dev/null/x"), "the run's folder /dev/null/x/"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_the_user_can_mend_is_one_line(refused, settings, given, message):
    assert refused(settings(*given)).startswith(message.replace("{cwd}", str(Path.cwd())))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("evaluate", "--model", "mine"), "option --model is now written metalora evaluate RUN"),
        (("evaluate", "--model=mine", "--rank", "3"), "option --model is now written metalora evaluate RUN"),
        (("report", "--campaign", "mine"), "option --campaign is now written metalora report RUN"),
        (("report", "mine", "--output-folder", "x"), "option --output-folder is now written --output"),
        (("bench", "knn", "--small", "--output", "x.json"), "option --output is now written --report"),
        (("report", "mine", "--outptu", "x"), "unknown option '--outptu', did you mean '--output'?"),
        (("report", "mine", "other"), "unexpected argument 'other'"),
        (("evaluate",), "the following arguments are required: RUN"),
        (
            ("evaluate", "mine", "--rank", "2"),
            "option --rank is a setting of trainings, which metalora evaluate does not",
        ),
        (
            ("seeds", "mine", "--format.branches=2"),
            "option --format.branches is a setting of trainings, which metalora",
        ),
        (("seeds",), "the following arguments are required: RUN"),
        (("report",), "the following arguments are required: RUN"),
    ],
)
def test_a_run_is_named_in_one_way(refused, line, message):
    assert refused(list(line)).startswith(message)


@pytest.mark.parametrize("command", ["evaluate", "seeds", "report"])
def test_a_run_comes_first_in_the_usage(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: metalora {command} RUN [" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["evaluate", "seeds", "report"])
def test_a_run_is_looked_for_below_output_and_by_its_path(refused, tmp_path, command):
    kind = "campaign" if command == "report" else "run"
    assert refused([command, "absent", "--output", "else"]) == f"no {kind} 'absent' in {tmp_path}/else (there: none)"
    Path("else/abesnt").mkdir(parents=True)
    for name, output in (("else/absent", "runs"), ("./absent", "else")):
        said = refused([command, name, "--output", output])
        assert said == f"{kind}: no such file or folder: 'else/absent' (here: {tmp_path}), did you mean 'abesnt'?"
    assert refused([command, "else/abesnt"]).startswith(f"'else/abesnt' is no {kind}: no ")


def test_a_taken_name_is_refused(refused, settings):
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/note").write_text("keep")
    message = refused(settings("--run-name", "mine"))
    assert message == f"run 'mine' exists in {Path.cwd()}/runs: choose another --run-name, or --resume mine"
    assert Path("runs/mine/note").read_text() == "keep"


def test_too_many_workers_are_refused_before_anything_is_read(refused, settings, monkeypatch):
    monkeypatch.setattr("pipelines.backend.prepare.open_table", None)
    message = refused(settings("--workers", "4096", "--batch-size", "4096", "--data", "embedded"))
    assert message.startswith("4096 workers")


def test_a_tracking_server_that_is_not_there_is_told_soon(refused, settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    message = refused(settings("--tracking-uri", f"http://127.0.0.1:{port}"))
    assert time.monotonic() - started < 15
    assert message.startswith(f"MLflow at 'http://127.0.0.1:{port}' cannot be used: ")
    assert not Path("runs").exists()


def test_a_tracking_server_that_never_answers_is_told_soon(refused, settings, monkeypatch):
    monkeypatch.setattr("metalora.tracking.mlflow_tracker.TIMEOUT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        message = refused(settings("--tracking-uri", f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert time.monotonic() - started + 2 * (TIMEOUT_SECONDS - 1) < 15  # it tries twice
    assert "cannot be used: " in message


def test_a_training_leaves_a_run_that_can_be_gone_on_with(settings, refused, capsys):
    main(settings("--run-name", "mine", "--epochs", "1"))
    output = capsys.readouterr()
    assert output.err == ""
    assert "K = 3" in output.out
    run = Path("runs/mine")
    assert {"config.yaml", "metrics.jsonl", "run.json", "knn.json", "adapter"} <= {path.name for path in run.iterdir()}
    before = (run / "metrics.jsonl").read_text()
    main(["train", "--resume", "mine"])  # it is finished: nothing is trained again, the same is said again
    assert (run / "metrics.jsonl").read_text() == before
    assert "K = 3" in capsys.readouterr().out
    assert refused(["train", "--resume", "mine", "--rank", "3"]).startswith(
        "mine cannot be resumed, its settings changed: adapter.rank was 2, is 3"
    )
    assert json.loads((run / "knn.json").read_text())["format"] == "lora"
    assert "rank: 3" not in (run / "config.yaml").read_text()  # what is refused changes nothing
    main(["train", "--resume", "mine"])
    assert refused(["train", "--resume", "mine", "--run-name", "other"]) == (
        "--run-name other: a run that is resumed keeps its name, mine"
    )


def test_a_moved_and_renamed_project_goes_on(settings, tmp_path, monkeypatch, capsys):
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    main(settings("--run-name", "mine", "--format", "cp", "--tracking-uri", "sqlite:///m.db", "--no-log-model"))
    metrics = (tmp_path / "old/runs/mine/metrics.jsonl").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").rename(tmp_path / "new")
    Path("new/runs/mine").rename("new/runs/yours")
    capsys.readouterr()
    main(["train", "--resume", "new/runs/yours"])
    main(["evaluate", "new/runs/yours", "--report", "again.json"])
    main(["seeds", "yours", "--output", "new/runs"])
    assert f"sqlite:///{tmp_path}/new/m.db" in capsys.readouterr().out
    assert (tmp_path / "new/runs/yours/metrics.jsonl").read_text() == metrics
    report = json.loads(Path("new/runs/yours/knn.json").read_text())
    assert json.loads(Path("again.json").read_text())["adapted"] == report["adapted"]


def test_a_run_of_older_code_goes_on_and_its_unknown_settings_had_their_defaults(settings, refused):
    main(settings("--run-name", "mine"))
    (state_file,) = Path("runs/mine").glob("checkpoint_*/state.pt")
    state = torch.load(state_file, weights_only=True)
    del state["settings"]["data.max_pixels"], state["networks"]
    state["settings"]["train.seed"] = state["settings"].pop("train.random_seed")
    torch.save(state, state_file)
    (state_file.parent / "SHA256SUMS").unlink()
    main(["train", "--resume", "mine"])
    assert refused(["train", "--resume", "mine", "--max-pixels", "100"]).startswith(
        "mine cannot be resumed, its settings changed: data.max_pixels was 67108864, is 100"
    )


def test_a_password_is_nowhere_to_be_seen(settings, refused, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:topsecret@127.0.0.1:1")
    monkeypatch.setattr("metalora.tracking.mlflow_tracker.TIMEOUT_SECONDS", 1)
    assert "topsecret" not in refused(settings("--tracking-uri", "default"))
    main([*settings("--tracking-uri", "default"), "--print-config"])
    main(
        [
            *settings("--tracking-uri", "http://bob:topsecret@h", "--storage-path", "s3://K:topsecret@b"),
            "--print-config",
        ]
    )
    captured = capsys.readouterr()
    assert "topsecret" not in captured.out + captured.err
    assert "s3://K:***@b" in captured.out


def test_a_closed_output_loses_no_training(settings, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    main(settings("--run-name", "mine"))
    assert Path("runs/mine/knn.json").is_file()


def test_a_tracker_lost_at_the_end_does_not_hide_the_results(settings, capsys, monkeypatch, tmp_path):
    def away(*arguments, **more):
        raise ConnectionError("the server is away")

    for name in ("artifact", "model"):
        monkeypatch.setattr(MlflowTracker, name, away)
    try:
        main(settings("--tracking-uri", f"sqlite:///{tmp_path}/m.db", "--run-name", "mine"))
    except SystemExit as end:
        assert end.code == 2  # noqa: PT017
    output = capsys.readouterr()
    said = output.out + output.err
    assert "K = 3" in said
    assert "the server is away" in said
    assert "--resume mine" in said


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupted_tracked_run_is_marked_so(settings, monkeypatch, tmp_path, capsys, number, status, word):
    from mlflow import MlflowClient

    def interrupted(*arguments, **more):
        signal.raise_signal(number)

    monkeypatch.setattr("pipelines.commands.train._fit", interrupted)
    with pytest.raises(SystemExit) as end:
        main(settings("--tracking-uri", f"sqlite:///{tmp_path}/m.db", "--run-name", "mine"))
    assert end.value.code == status
    client = MlflowClient(f"sqlite:///{tmp_path}/m.db")
    said = capsys.readouterr().err.splitlines()
    assert said == [f"metalora: {word}", "to continue: metalora train --resume mine"]
    (run,) = client.search_runs([client.get_experiment_by_name("metalora").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "KILLED")
    assert json.loads(Path("runs/mine/run.json").read_text())["run_id"] == run.info.run_id


def test_nothing_of_the_command_stays_behind(settings):
    threads, environment = threading.active_count(), dict(os.environ)
    main(settings())
    assert threading.active_count() <= threads
    assert dict(os.environ) == environment
