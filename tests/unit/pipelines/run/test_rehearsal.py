"""``--dry-run``: all that comes before a training, and nothing that stays."""

from pathlib import Path

import pytest

from metalora.config import Config, from_dict
from pipelines.cli import main
from pipelines.run.rehearsal import ENDED, changed_settings


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.init", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_dry_run_of_a_training_leaves_nothing(settings, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    main([*settings("--batch-size", "4", "--epochs", "3", "--tracking-uri", "default"), "--dry-run"])
    said = capsys.readouterr().out.splitlines()
    assert "data      28 train, 4 val, 8 test images of 2 classes in 2 domains" in said
    assert "steps     7 per epoch, 21 in all, of 4 images" in said  # 28 / 4
    (line,) = [line for line in said if line.startswith("settings  ")]
    assert "format lora, rank 2" in line
    assert "epochs 3" in line
    assert "tracking_uri" not in line
    (line,) = [line for line in said if line.startswith("trained   ")]
    assert said[-1] == ENDED
    assert list(Path().iterdir()) == []


def test_a_dry_run_trains_as_many_parameters_as_the_training(settings, capsys):
    main([*settings(), "--dry-run"])
    (dry,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trained   ")]
    main(settings("--run-name", "mine"))
    assert dry in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--batch-size", "800"), "batch_size 800 exceeds the 28 images"),
        (("--rank", "1000"), "module 'net.stages.0.0.conv1': rank 1000 does not fit"),
        (("--callbacks", "in_turn"), "callback in_turn needs"),
        (("--run-name", "taken"), "run 'taken' exists in"),
        (("--tracking-uri", "mlruns"), "tracking_uri 'mlruns': wanted"),
    ],
)
def test_a_dry_run_refuses_what_the_training_would(refused, settings, given, message):
    Path("runs/taken").mkdir(parents=True)
    Path("runs/taken/note").touch()
    assert refused([*settings(*given), "--dry-run"]).startswith(message)


def test_a_dry_run_of_a_finished_run_changes_nothing(settings, capsys):
    main(settings("--run-name", "mine"))
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.is_file()}
    capsys.readouterr()
    main(["train", "--resume", "mine", "--epochs", "2", "--dry-run"])
    said = capsys.readouterr().out
    assert "steps     3 per epoch, 6 in all, of 8 images" in said
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.is_file()} == before


def tune(settings, *more):
    given = settings("--workers", "1")[1:]
    return ["tune", *given, "--space", "mine.py", "--dry-run", *more]


def test_a_dry_run_of_a_campaign_counts_its_trials(settings, capsys):
    Path("mine.py").write_text("from ray import tune\nSPACE = [{'lr': tune.choice([1e-3, 1e-2, 1e-1])}]\n")
    main(tune(settings, "--searcher", "grid", "--repeats", "2"))
    said = capsys.readouterr().out
    assert "space     mine.py: lr\n" in said
    assert "6 trials, grid search, 2 for each point, judged by val/knn3" in said  # 3 x 2
    assert said.endswith(f"{ENDED}\n")
    assert sorted(path.name for path in Path().iterdir()) == ["mine.py"]


def test_a_dry_run_of_a_campaign_checks_points_and_objectives(refused, settings):
    Path("mine.py").write_text("SPACE = [{'alpha': -1}]\n")
    assert "alpha" in refused(tune(settings))
    Path("mine.py").write_text("SPACE = [{'alpha': 1}]\n")
    assert refused(tune(settings, "--objectives", "val/nosuch")).startswith("no trial reports the objective")
    Path("mine.py").write_text("SPACE = [{'target_modules': ('nosuch',)}]\n")
    assert refused(tune(settings, "--searcher", "grid")).startswith("no point of space 'mine.py' fits")


def test_only_settings_that_differ_are_shown_and_no_password():
    assert list(changed_settings(Config())) == ["tracking_uri default"]
    given = {
        "adapter": {"format": {"name": "multi_lora", "branches": 2}, "rank_pattern": {"conv1": 3}},
        "evaluate": {"knn": [3, 7]},
        "train": {"augment": ["flip", {"name": "mixup", "alpha": 0.4}]},
        "cluster": {"storage_path": "s3://me:secret@bucket"},
    }
    shown = list(changed_settings(from_dict(given)))
    assert shown[:2] == ["format multi_lora(branches=2)", "rank_pattern conv1=3"]
    assert "augment flip mixup(alpha=0.4)" in shown
    assert "knn 3 7" in shown
    assert "secret" not in " ".join(shown)
