"""Runs and campaigns whose folders are damaged, or come from strangers: told in a line, nothing written outside."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from metalora.errors import UserError
from metalora.files import damage
from pipelines.campaign.spaces import is_trusted_space, trust_space
from pipelines.campaign.trials import TrialRecord, TrialSpec, read_plan, read_trials
from pipelines.cli import main
from pipelines.run.folder import check_links

CAMPAIGN = {"campaign": {"metric": "val/knn10", "mode": "max", "space": "paper"}, "config": {"data": {}}}


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    """The folder of runs with one that is finished, ``mine``, of a format with seeds."""
    folder = tmp_path_factory.mktemp("project")
    here = Path.cwd()
    os.chdir(folder)
    main(
        ["train", "--data", str(tree), "--weights", "none", "--image-size", "8", "--workers", "0", "--loader-workers",
         "0", "--epochs", "2", "--batch-size", "8", "--knn", "3", "--rank", "2", "--format", "cp", "--tracking-uri",
         "none", "--run-name", "mine"]
    )  # fmt: skip
    os.chdir(here)
    return folder / "runs"


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of the run, where the test stands."""
    shutil.copytree(finished, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "mine"


@pytest.fixture
def refused(capsys):
    def refused(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2, error
        assert error.startswith("metalora: error: ")
        assert error.count("\n") == 1
        assert len(error) < 1500
        return error

    return refused


OUTSIDE = ["adapter", "adapter/adapter.json", "adapter/adapter.safetensors", "knn.json", "config.yaml", "run.json",
           "metrics.jsonl", "seeds", "seeds/seeds.parquet", "seeds/tsne.png"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_results_replace_links_and_do_not_write_through_them(run, tmp_path, name):
    before = {file.name: file.read_bytes() for file in (run / "adapter").iterdir()}
    outside = tmp_path / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    files = [outside] if outside.is_file() else sorted(outside.rglob("*"))
    kept = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files if file.is_file()}
    main(["train", "--resume", "mine"])
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in kept} == kept
    assert {file.name for file in outside.rglob("*")} == {file.name for file in files if file != outside}
    assert not (run / name).is_symlink()
    assert {file.name: file.read_bytes() for file in (run / "adapter").iterdir()} == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "knn.json", "run.json", "seeds", "seeds/seeds.parquet", "adapter"])
def test_links_to_what_is_not_there_make_nothing_there(run, tmp_path, name):
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    (run / name).symlink_to(tmp_path / "outside")
    main(["train", "--resume", "mine"])
    assert not os.path.lexists(tmp_path / "outside")
    assert not (run / name).is_symlink()


@pytest.mark.parametrize("name", ["checkpoint_00000099", "trials", "trials/x", ".lock", "checkpoint_00000003/state.pt"])
def test_other_links_are_refused_before_anything_is_written(run, tmp_path, refused, name):
    (tmp_path / "outside").mkdir()
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "outside")
    config = (run / "config.yaml").stat().st_mtime_ns
    said = refused("train", "--resume", "mine")
    assert name.rpartition("/")[2] in said or "cannot be written" in said
    assert list((tmp_path / "outside").iterdir()) == []
    assert (run / "config.yaml").stat().st_mtime_ns == config
    with pytest.raises(UserError, match="is a link to"):
        check_links(run)


def test_a_damaged_checkpoint_gives_way_and_the_results_are_the_same(run, capsys):
    *_, before, last = sorted(run.glob("checkpoint_*"))
    report = (run / "knn.json").read_text()
    content = bytearray((last / "state.pt").read_bytes())
    content[len(content) // 3] ^= 1
    (last / "state.pt").write_bytes(content)
    capsys.readouterr()
    main(["train", "--resume", "mine"])
    assert f"{last.name} is damaged: state.pt is not what was written; it is left out" in capsys.readouterr().out
    assert damage(last) is None  # it was trained again from the one before
    assert before.exists()
    assert (run / "knn.json").read_text() == report


@pytest.mark.parametrize(
    ("section", "name", "place"),
    [
        ("tracking", "tracking_uri", "sqlite:///{outside}/evil.db"),
        ("tracking", "tracking_uri", "http://192.0.2.1:5000"),
        ("cluster", "storage_path", "{outside}/evil"),
        ("cluster", "storage_path", "s3://evil/bucket"),
    ],
)
def test_places_that_a_run_names_are_written_to_where_the_user_has_named_them(
    run, refused, tmp_path_factory, section, name, place
):
    outside = tmp_path_factory.mktemp("outside")
    place = place.format(outside=outside)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings[section][name] = place
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    said = refused("train", "--resume", "mine")
    assert f"run 'mine' names {name} '{place}', which was never used from here" in said
    assert f"--{name.replace('_', '-')} {place}" in said
    assert list(outside.iterdir()) == []


def test_a_store_that_a_run_names_gets_no_seeds_where_the_user_has_not_named_it(run, capsys, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (run / "run.json").write_text(json.dumps({"run_id": "x", "tracking_uri": f"sqlite:///{outside}/evil.db"}))
    main(["seeds", "mine"])
    assert "was never used from here" in " ".join(capsys.readouterr().out.split())
    assert list(outside.iterdir()) == []


def test_a_place_that_was_named_is_used_again(tree, tmp_path, monkeypatch, refused, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    monkeypatch.chdir(tmp_path)
    line = ["--data", str(tree), "--weights", "none", "--image-size", "8", "--workers", "0", "--epochs", "1"]
    line += ["--batch-size", "8", "--knn", "3", "--rank", "2", "--format", "lora", "--no-log-model"]
    main(["train", *line, "--run-name", "mine", "--tracking-uri", f"sqlite:///{outside}/m.db"])
    main(["train", "--resume", "mine"])
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "another"))
    assert "was never used from here" in refused("train", "--resume", "mine")
    main(["train", "--resume", "mine", "--tracking-uri", f"sqlite:///{outside}/m.db"])
    main(["train", "--resume", "mine"])


def test_seeds_are_not_written_through_a_link(run, refused, tmp_path):
    (run / "seeds").rename(tmp_path / "outside")
    (run / "seeds").symlink_to(tmp_path / "outside")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "outside").iterdir()}
    assert "seeds is a link to" in refused("seeds", "mine")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "outside").iterdir()} == before


@pytest.mark.parametrize(
    "name", ["trials/report", "trials/seeds", "trials/000/x", "x/config.yaml", "trials/000/x/adapter"]
)
def test_links_are_known_by_their_place_not_their_name(run, tmp_path, name):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link to"):
        check_links(run)


@pytest.mark.parametrize(
    "line",
    [
        ["train", "--resume", "{long}"], ["evaluate", "{long}"], ["seeds", "{long}"],
        ["report", "{long}"], ["tune", "--resume", "{long}"], ["tune", "--space", "{long}.py"],
        ["tune", "--space", "/dev/zero"], ["train", "--weights", "{long}.pth"], ["train", "--output", "{long}"],
        ["train", "--config", "{long}"], ["train", "--data", "{long}"],
    ],
)  # fmt: skip
def test_names_that_no_file_can_have(refused, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    refused(*(part.format(long="x" * 300) for part in line))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", "{", "run .*run.json cannot be read"),
        ("run.json", "[]", "run .*run.json cannot be read"),
        ("run.json", '{"run_id": 3}', "run .*run.json cannot be read: run_id = 3"),
        ("run.json", "[" * 10**5, "nested too deeply"),
        ("metrics.jsonl", '{"step": 1}', "metrics.jsonl, line 1, cannot be read: time = .*field required"),
        ("metrics.jsonl", '{"step": -1, "time": 1, "metrics": {}}', "step = -1"),
        ("metrics.jsonl", '{"step": 1, "time": 1, "metrics": {"a": "x"}}', "metrics.a = 'x'"),
        ("metrics.jsonl", '{"step": 1, "time": 1e999, "metrics": {}}', "time = inf"),
        ("metrics.jsonl", "[" * 10**5, "line 1, cannot be read: it is nested too deeply"),
        ("config.yaml", "train: 3", "config.yaml' cannot be read: train = 3"),
        ("config.yaml", "train: [", "config.yaml' cannot be read"),
        ("config.yaml", "train: {lr: 2024-01-01}", "train.lr = '2024-01-01'"),
        ("config.yaml", "data: {data: [1]}", "data.data = "),
    ],
)
def test_damaged_files_of_a_run_are_told_by_name(run, refused, name, content, said):
    import re

    (run / name).write_text(content)
    assert re.search(said, refused("train", "--resume", "mine"))


def test_damaged_seeds_are_told_by_name(run, refused, capsys):
    (run / "run.json").write_text("{")
    main(["seeds", "mine"])
    assert "tracking: run " in (said := capsys.readouterr().out)
    assert "run.json cannot be read" in said
    (run / "seeds/seeds.parquet").write_text("no Parquet")
    assert "seeds.parquet' cannot be read" in refused("seeds", "mine")


def test_a_run_without_seeds_whose_report_is_damaged(run, refused):
    shutil.rmtree(run / "seeds")
    (run / "knn.json").write_text('{"format": ' + '"x' * 10**5)
    assert "knn.json cannot be read" in refused("seeds", "mine")


@pytest.mark.parametrize("plan", [{}, {"campaign": []}, {"campaign": {"metric": 3, "mode": "max"}, "config": {}}])
def test_a_plan_that_is_none_is_told_by_name(tmp_path, refused, plan):
    folder = tmp_path / "runs" / "c"
    folder.mkdir(parents=True)
    (folder / "campaign.yaml").write_text(json.dumps(plan))
    for command in (["report", "c", "--output"], ["tune", "--resume", "c", "--output"]):
        assert "campaign.yaml" in refused(*command, str(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../../../evil"}, r"belongs to trial '\.\./\.\./\.\./evil': its folder must have that name"),
        ({"number": -1}, "number = -1"),
        ({"status": "great"}, "status = 'great'"),
        ({"result": {"a": "x"}}, "result.a = 'x'"),
        ({"result": {"a": float("nan")}}, "NaN is no number"),
        ({"point": 3}, "point = 3"),
        ({"surprise": 3}, "surprise = 3"),
        ({"seconds": None}, "seconds = None"),
    ],
)
def test_a_trial_that_is_none_is_told_by_name(tmp_path, change, said):
    folder = tmp_path / "c" / "trials" / "000"
    folder.mkdir(parents=True)
    record = TrialRecord(TrialSpec(0, {"rank": 2}, 0, "000"), "finished", result={"a": 1.0, "b": float("inf")})
    record.write(folder)
    assert read_trials(tmp_path / "c") == [record.but(result={"a": 1.0})]
    values = json.loads((folder / "trial.json").read_text())
    (folder / "trial.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=f"trial .*trial.json .*{said}"):
        read_trials(tmp_path / "c")


def test_a_space_is_run_where_the_user_has_named_it(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nSPACE = [{{'rank': 2}}]\n")
    folder = tmp_path / "runs" / "c"
    folder.mkdir(parents=True)
    plan = {"campaign": {**CAMPAIGN["campaign"], "space": "evil.py"}, "config": {}}
    (folder / "campaign.yaml").write_text(json.dumps(plan))
    said = refused("tune", "--resume", "c")
    assert "searches 'evil.py', Python that was never run here" in said
    assert "--resume c --space evil.py" in said
    assert not (tmp_path / "ran").exists()
    trust_space("evil.py")
    assert is_trusted_space("evil.py")
    Path("evil.py").write_text("SPACE = []")
    assert not is_trusted_space("evil.py")
    assert is_trusted_space("paper")
    assert read_plan(folder)["campaign"]["space"] == "evil.py"
