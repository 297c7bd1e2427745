"""Going on: a finished run trained longer, and a training that begins with another run's adapter."""

import json
import re
import shutil
from pathlib import Path

import pytest

from metalora.errors import UserError
from pipelines.commands import train
from pipelines.run.log import read_metrics

SMALL = [
    "--workers", "0", "--epochs", "1", "--batch-size", "8", "--image-size", "16", "--knn", "1", "3", "--rank", "2",
    "--tracking-uri", "none", "--format", "cp", "--weights", "none", "--evaluation-batch-size", "16",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory, tree):
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("going on")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main(["--data", str(tree), *SMALL, "--run-name", "first", "--lr", "0.01"])
    return folder


@pytest.fixture(autouse=True)
def inside(project, monkeypatch):
    monkeypatch.chdir(project)


def _steps(run, name="train/loss"):
    return [step for step, _, values in read_metrics(Path("runs") / run / "metrics.jsonl") if name in values]


def test_a_finished_run_is_trained_longer(tree, capsys):
    train.main(["--data", str(tree), *SMALL, "--run-name", "longer"])
    end = _steps("longer")[-1]
    train.main(["--resume", "longer"])
    assert "run longer has ended (--epochs N trains longer)" in capsys.readouterr().out
    assert _steps("longer")[-1] == end
    train.main(["--resume", "longer", "--epochs", "2"])
    assert f"continues after step {end} of {2 * end}; the learning rate follows the longer" in capsys.readouterr().out
    assert _steps("longer", "val/loss") == [end, 2 * end]
    assert _steps("longer", "test/accuracy") == [end, 2 * end]
    with pytest.raises(UserError, match=r"train.epochs was 2, is 1"):
        train.main(["--resume", "longer", "--epochs", "1"])


def test_a_training_begins_where_another_run_ended(tree, capsys):
    """At a rate at which nothing is learned, it has the other run's accuracies to the digit."""
    train.main(
        ["--data", str(tree), "--init-adapter", "first", "--run-name", "second", "--lr", "1e-12", "--batch-size", "8",
         "--epochs", "1", "--workers", "0", "--knn", "1", "3", "--tracking-uri", "none", "--random-seed", "0"]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "cp, rank 2, on resnet20" in said
    assert "its classifier knows all classes" in said
    first, second = (json.loads((Path("runs") / run / "knn.json").read_text()) for run in ("first", "second"))
    assert first == second


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--init-adapter", "fist"], "no run 'fist' in .*, did you mean 'first'"),
        (["--init-adapter", "first", "--rank", "3"], "its layers was .* of rank 2, here it is .* of rank 3"),
        (["--init-adapter", "first", "--format", "tr"], "its format was cp, here it is tr"),
        (["--init-adapter", "first", "--random-seed", "1"], "here it is resnet20, with other weights"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_the_training(tree, option, message):
    with pytest.raises(UserError, match=message):
        train.main(["--data", str(tree), *option, "--workers", "0", "--tracking-uri", "none", "--knn", "1"])
    assert sorted(path.name for path in Path("runs").iterdir() if path.name not in ("longer", "second")) == ["first"]


def test_the_best_epoch_is_told(tree, capsys):
    train.main(["--data", str(tree), *SMALL, "--run-name", "best", "--keep", "best", "--monitor", "val/loss"])
    said = capsys.readouterr().out
    assert "run       best: cp, rank 2, on resnet20; 1 epoch; this process, without Ray\n" in said
    assert "training  on a CPU, float32, plain kernels; the first step took" in said
    assert re.search(r"best      keeping the weights of epoch 1 \(val/loss \d\.\d{4}\)\n", said)


def test_an_image_in_two_splits_is_told_before_the_training(tree, tmp_path, capsys):
    copy = tmp_path / "copy"
    for split in ("train", "test"):
        shutil.copytree(tree, copy / split)
    train.main(["--data", str(copy), *SMALL, "--dry-run"])
    said = capsys.readouterr().out
    assert "of val or test also in an earlier split, as the network sees it (metalora data inspect" in said
    train.main(["--data", str(tree), *SMALL, "--dry-run"])
    assert "earlier split" not in capsys.readouterr().out


def test_a_tracked_run_says_how_its_model_is_served(tree, capsys, tmp_path):
    uri = f"sqlite:///{tmp_path}/m.db"
    train.main(["--data", str(tree), *SMALL, "--run-name", "tracked", "--tracking-uri", uri])
    run_id = json.loads(Path("runs/tracked/run.json").read_text())["run_id"]
    assert f"MLFLOW_TRACKING_URI={uri} mlflow models serve -m runs:/{run_id}/model" in capsys.readouterr().out
