"""``metalora tune``: campaigns on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from pipelines.campaign.trials import TrialRecord, read_trials
from tests.integration.helpers import SMALL, importable, knn, metalora, relative, series

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPACE = """
from ray import tune
SPACE = [{"format": "lora", "lr": 0.003}, {"format": "tr", "mapping_depth": tune.choice([1, 2]), "lr": 0.003}]
CAMPAIGN = {"searcher": "grid"}
"""
BASE = [argument for argument in SMALL if argument not in ("--lr", "0.003")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    (folder / "space.py").write_text(SPACE)
    return folder


def tune(folder: Path, tree: Path, name: str, *arguments: str) -> tuple[Path, str]:
    """Run a campaign on the small tree; return its folder and what it printed."""
    done = metalora(
        folder, "tune", "--space", "space.py", "--data", relative(tree, folder), *BASE, "--run-name", name, *arguments
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "runs" / name, done.stdout


@pytest.fixture(scope="module")
def campaign(folder: Path, tree: Path) -> tuple[Path, str]:
    return tune(folder, tree, "all")


def test_a_campaign_runs_every_point(campaign: tuple[Path, str]) -> None:
    run, printed = campaign
    records = read_trials(run)
    assert [record.trial.point for record in records] == [
        {"format": "lora", "lr": 0.003},
        {"format": "tr", "mapping_depth": 1, "lr": 0.003},
        {"format": "tr", "mapping_depth": 2, "lr": 0.003},
    ]
    for record in records:
        assert record.status == "finished"
        assert record.parameters > 0
        trial = run / "trials" / record.trial.name
        assert (trial / "adapter" / "adapter.safetensors").is_file()
        assert (trial / "seeds" / "tsne.png").is_file() == (record.trial.point["format"] == "tr")
        assert record.result["val/knn3"] == list(series(trial, "val/knn3").values())[-1]
        assert record.result["parameters"] == record.parameters
    assert "shared by all trials, computed once" in printed
    assert printed.count("extractor features (stats)") == 1
    assert "3 finished of 3 trials | highest val/knn3" in printed
    assert "first     " in printed
    assert "format         " in printed, "the verdict"
    text = (run / "report" / "report.md").read_text()
    assert "| original | no adapter |" in text
    assert "validation images: one image is" in text


def test_mlflow_has_parent_and_children(campaign: tuple[Path, str], folder: Path) -> None:
    run, _ = campaign
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("metalora")
    assert experiment is not None
    runs = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    parent = runs["all"]
    assert parent.data.tags["metalora.kind"] == "campaign"
    assert parent.info.status == "FINISHED"
    assert parent.data.params["campaign.searcher"] == "grid"
    assert "validation images: one image is" in parent.data.tags["metalora.verdict"]
    assert {a.path for a in client.list_artifacts(parent.info.run_id, "report")} >= {"report/report.md"}
    for record in read_trials(run):
        child = runs[record.trial.name]
        assert child.info.run_id == record.run_id
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["metalora.kind"] == "trial"
        assert child.data.tags["metalora.format"] == record.trial.point["format"]
        assert child.data.params["adapter.format"] == record.trial.point["format"]
        assert child.data.metrics["val/knn3"] == pytest.approx(record.result["val/knn3"])
        assert {"test/knn3", "test/knn3/paper", "train/loss", "parameters"} <= child.data.metrics.keys()
        artifacts = {a.path for a in client.list_artifacts(child.info.run_id)}
        assert artifacts >= {"config.yaml", "adapter", "knn.json"}
        seeds = {a.path for a in client.list_artifacts(child.info.run_id, "seeds")}
        wanted = {"seeds/seeds.parquet", "seeds/tsne.png"} if record.trial.point["format"] == "tr" else set()
        assert seeds == wanted
    best = max(read_trials(run), key=lambda record: record.result["val/knn3"])
    champion = client.get_model_version_by_alias("all", "champion")
    assert runs[best.trial.name].data.metrics["val/knn3"] == pytest.approx(best.result["val/knn3"])
    assert champion.run_id in {r.run_id for r in read_trials(run) if r.result["val/knn3"] == best.result["val/knn3"]}


def test_the_champion_is_evaluated(campaign: tuple[Path, str], folder: Path) -> None:
    run, _ = campaign
    done = metalora(folder, "evaluate", "models:/all@champion", "--report", "again.json")
    assert done.returncode == 0, done.stderr[-3000:]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    version = client.get_model_version_by_alias("all", "champion")
    trial = next(r.trial.name for r in read_trials(run) if r.run_id == version.run_id)
    assert json.loads((folder / "again.json").read_text()) == knn(run / "trials" / trial)
    done = metalora(folder, "evaluate", f"runs/all/trials/{trial}")
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_trial_is_a_training(campaign: tuple[Path, str], folder: Path, tree: Path) -> None:
    """The same settings, trained alone, give the same table."""
    run, _ = campaign
    name = "001-tr-d1-lr0.003-s0"
    done = metalora(folder, "train", "--config", str(run / "trials" / name / "config.yaml"), "--run-name", "lone",
                    "--workers", "0")  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert knn(folder / "runs" / "lone") == knn(run / "trials" / name)


def test_asha_stops_and_the_rest_goes_on(folder: Path, tree: Path) -> None:
    run, printed = tune(folder, tree, "asha", "--scheduler", "asha", "--epochs", "9", "--reduction-factor", "2",
                        "--repeats", "4", "--tracking-uri", "none")  # fmt: skip
    records = read_trials(run)
    assert len(records) == 12
    states = [record.status for record in records]
    assert set(states) == {"finished", "stopped"}, states
    for record in records:
        trained = max(series(run / "trials" / record.trial.name, "val/loss"))
        assert (trained == 9 * 5) == (record.status == "finished")
        assert (run / "trials" / record.trial.name / "knn.json").exists() == (record.status == "finished")
    assert "12 trials" in printed


def test_a_killed_driver_is_resumed(campaign: tuple[Path, str], folder: Path, tree: Path) -> None:
    """Finished trials stay, open ones go on from their checkpoint, in the same runs; the tables are the same."""
    long = ["--epochs", "15"]
    whole, _ = tune(folder, tree, "whole", *long, "--tracking-uri", "none")
    arguments = ["tune", "--space", "space.py", "--data", relative(tree, folder), *BASE, "--run-name", "cut", *long,
                 "--concurrent-trials", "1"]  # fmt: skip
    run = folder / "runs" / "cut"
    with (folder / "cut.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", *arguments], cwd=folder, env=importable(),
                                   stdout=log, stderr=log)  # fmt: skip
    _wait_for(lambda: any(run.glob("ray/part-*/001-tr-d1-lr0.003-s0/checkpoint_000002")), process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for left in psutil.wait_procs(family, timeout=20)[1]:
        left.kill()
    before = {record.trial.name: record for record in read_trials(run)}
    assert [record.status for record in before.values()] == ["finished", "running"]
    kept = (run / "trials" / "000-lora-lr0.003-s0" / "knn.json").stat().st_mtime_ns
    done = metalora(folder, "tune", "--resume", "cut")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run / "trials" / "000-lora-lr0.003-s0" / "knn.json").stat().st_mtime_ns == kept
    _same(run, whole)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    for record in read_trials(run):
        if record.trial.name in before:
            assert record.run_id == before[record.trial.name].run_id
        assert record.run_id is not None
        steps = [metric.step for metric in client.get_metric_history(record.run_id, "val/knn3")]
        assert steps == sorted(set(steps)), "no validation is recorded twice"
        assert len(steps) == 15


def _same(run: Path, other: Path) -> None:
    records: list[list[TrialRecord]] = [read_trials(run), read_trials(other)]
    for one, two in zip(*records, strict=True):
        assert (one.trial, one.status) == (two.trial, two.status)
        trials = [run / "trials" / one.trial.name, other / "trials" / two.trial.name]
        assert knn(trials[0]) == knn(trials[1])
        assert series(trials[0], "val/loss") == series(trials[1], "val/loss")


def test_a_failing_trial_does_not_end_the_campaign(folder: Path, tree: Path) -> None:
    (folder / "bad.py").write_text(
        "from ray import tune\nSPACE = [{'format': 'lora', 'lr': tune.choice([1e30, 0.003])}]\n"
        "SETTINGS = {'clip_norm': None}\nCAMPAIGN = {'searcher': 'random', 'trials': 3}\n"
    )
    done = metalora(folder, "tune", "--space", "bad.py", "--data", relative(tree, folder), *BASE, "--run-name", "bad")
    assert done.returncode == 0, done.stderr[-3000:]
    records = read_trials(folder / "runs" / "bad")
    states = {record.trial.point["lr"]: (record.status, record.error) for record in records}
    assert states[0.003] == ("finished", None)
    assert states[1e30][0] == "failed"
    assert "is not finite at step" in str(states[1e30][1])
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    failed = client.get_run(next(str(record.run_id) for record in records if record.status == "failed"))
    assert failed.info.status == "FAILED"
    assert "is not finite" in failed.data.tags["metalora.error"]


def test_nested_trials_on_two_cpus(folder: Path, tree: Path) -> None:
    """Two workers a trial, two CPUs: a driver that took one would wait for its own workers for ever."""
    run, _ = tune(folder, tree, "nested", "--workers", "2", "--trials", "1", "--tracking-uri", "none")
    (record,) = read_trials(run)
    assert record.status == "finished"
    assert record.result["epoch"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "papre"], "unknown space 'papre', did you mean 'paper'"),
        (["--space", "space.py", "--objectives", "val/knn7"], "no trial reports the objective 'val/knn7'"),
        (["--space", "space.py", "--lr", "0.1"], "lr is searched by space 'space.py'"),
        (["--space", "space.py", "--cpus-per-worker", "99"], "1 workers with 99 CPUs each need 99 CPUs"),
        (["--space", "space.py", "--workers", "9", "--batch-size", "18"], "9 workers with 1 CPUs each"),
        (["--space", "space.py", "--run-name", "all"], "run 'all' exists"),
        (["--space", "space.py", "--scheduler", "asha", "--objectives", "parameters"], "needs a leading objective"),
        (["--resume", "absent"], "no campaign 'absent'"),
        (["--resume", "all", "--epochs", "7"], "cannot be resumed: train.epochs was 3, is 7"),
        (["--resume", "all", "--exclude-domains", "slate"], "data.exclude_domains was"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_anything_starts(
    campaign: Any,
    folder: Path,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[[list[str]], str],
    arguments: list[str],
    message: str,
) -> None:
    data = [] if "--resume" in arguments else ["--data", relative(tree, folder), *BASE]
    if "--batch-size" in arguments:
        data = [argument for argument in data if argument not in ("--batch-size", "12")]
    monkeypatch.chdir(folder)
    assert message in refused(["tune", *data, *arguments])


def test_bad_input_ends_the_process(campaign: Any, folder: Path) -> None:
    """Libraries that are imported and leave have nothing to add to the line."""
    done = metalora(folder, "tune", "--resume", "all", "--epochs", "7")
    assert done.returncode == 2, done.stdout
    assert done.stderr == "metalora: error: campaign 'all' cannot be resumed: train.epochs was 3, is 7\n"


def _wait_for(condition: Any, process: subprocess.Popen[Any], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
