"""``metalora seeds``: which folder is meant, what it writes, what MLflow is given."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from metalora.errors import UserError
from metalora.evaluate.seeds import write_seeds
from pipelines.commands.seeds import find_seeds, main
from pipelines.run.trust import trust


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
        monkeypatch.delenv(name)


def make_run(folder: Path, format: str = "tr", finished: bool = True, count: int = 60) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    if finished:
        (folder / "knn.json").write_text(json.dumps({"format": format}))
    if finished and format == "tr":
        task = np.arange(count) % 2
        vectors = np.random.default_rng(0).normal(size=(count, 5)) + 9 * task[:, None]
        domains, labels = ["sketch" if t else "photo" for t in task], [str(i % 3) for i in range(count)]
        write_seeds(folder / "seeds/seeds.parquet", [str(i) for i in range(count)], domains, labels,
                    ["test"] * count, vectors)  # fmt: skip
    return folder


def test_it_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = make_run(tmp_path / "runs" / "mine") / "seeds"
    main(["mine"])

    printed = " ".join(capsys.readouterr().out.split())
    assert "60 seeds of 5 numbers" in printed
    assert (
        "The mapping net tells the tasks apart: from the seed alone, a linear probe names the task of 100.0%" in printed
    )
    assert sorted(path.name for path in seeds.iterdir()) == ["analysis.json", "pca.png", "seeds.parquet", "tsne.png"]
    analysis = json.loads((seeds / "analysis.json").read_text())
    assert analysis["task"]["probe"] == 1
    assert analysis["task"]["eta_squared"] > 0.8
    assert analysis["class"]["chance"] == pytest.approx(1 / 3)
    assert "components" not in analysis


def test_a_run_is_a_name_a_path_or_a_trial(tmp_path: Path) -> None:
    trial = make_run(tmp_path / "elsewhere" / "campaign" / "trials" / "000-tr")
    assert find_seeds(str(trial), tmp_path / "runs") == trial
    assert find_seeds("campaign/trials/000-tr", tmp_path / "elsewhere") == trial


def test_what_has_no_seeds_is_refused_in_a_line(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs / "fixed", "lora")
    make_run(runs / "begun", finished=False)
    with pytest.raises(UserError, match=r"no run 'fixd' in .*, did you mean 'fixed'\? \(there: begun, fixed\)"):
        find_seeds("fixd", runs)
    with pytest.raises(UserError, match=r"'begun' is not finished: it has no knn.json \(there: config.yaml\)"):
        find_seeds("begun", runs)
    with pytest.raises(UserError, match="'fixed' has no seeds: its format 'lora' generates none"):
        find_seeds("fixed", runs)
    with pytest.raises(UserError, match="unknown option '--wrong'"):
        main(["fixed", "--wrong"])


@pytest.mark.slow
def test_mlflow_gets_the_files_and_the_run_stays_as_it_was(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run = client.create_run("0")
    client.set_terminated(run.info.run_id, "FINISHED", end_time=1234567890)
    folder = make_run(tmp_path / "runs" / "mine")
    (folder / "run.json").write_text(json.dumps({"run_id": run.info.run_id, "tracking_uri": uri}))

    main(["mine"])

    names = [file.path for file in client.list_artifacts(run.info.run_id, "seeds")]
    assert names == ["seeds/analysis.json", "seeds/pca.png", "seeds/tsne.png"]
    after = client.get_run(run.info.run_id).info
    assert (after.status, after.end_time) == ("FINISHED", 1234567890)


def test_a_tracker_that_is_away_hides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "runs" / "mine")
    note = {"run_id": "a" * 32, "tracking_uri": "http://127.0.0.1:9"}
    (folder / "run.json").write_text(json.dumps(note))
    trust("tracking_uri", "http://127.0.0.1:9")
    main(["mine"])
    assert "tracking: MLflow at 'http://127.0.0.1:9' did not take the files" in capsys.readouterr().out
    assert (folder / "seeds" / "pca.png").is_file()
