import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from metalora.config import from_dict, to_yaml
from metalora.errors import UserError
from metalora.evaluate.seeds import write_seeds
from pipelines.run.folder import (
    CONFIG,
    continued,
    find_run,
    read_run_note,
    read_settings,
    tracked_id,
    writable_file,
    write_run_note,
)  # fmt: skip
from pipelines.run.results import copy_results


@pytest.fixture
def project(tmp_path):
    """A project with data, a store and a run that names them."""
    folder = tmp_path / "old" / "runs" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "old" / "photos").mkdir()
    (tmp_path / "old" / "m.db").touch()
    uri = f"sqlite:///{tmp_path}/old/m.db"
    config = from_dict({"data": {"data": str(tmp_path / "old" / "photos")}, "tracking": {"tracking_uri": uri}})
    (folder / CONFIG).write_text(to_yaml(config))
    write_run_note(folder, "123", uri)
    return tmp_path / "old"


def test_a_run_is_found_by_name_and_by_folder(project, monkeypatch):
    wanted = project / "runs" / "a"
    assert find_run("a", project / "runs") == wanted
    monkeypatch.chdir(project)
    assert find_run("runs/a", Path("/nowhere")) == find_run("runs/../runs/a", Path("/nowhere")) == wanted
    with pytest.raises(UserError, match=r"no run 'b' in .*runs \(there: a\)"):
        find_run("b", project / "runs")


def test_a_run_of_another_kind_is_told(project):
    for name, file in (("all", "campaign.yaml"), ("table", "table.yaml")):
        (project / "runs" / name).mkdir()
        (project / "runs" / name / file).touch()
    output = project / "runs"
    with pytest.raises(UserError, match=r"'all' is a campaign, and a run is wanted: its trials are runs, .*NAME"):
        find_run("all", output)
    with pytest.raises(UserError, match=r"^'a' is a run, and a campaign is wanted$"):
        find_run("a", output, "campaign.yaml", "campaign")
    with pytest.raises(UserError, match=r"^'table' is a table, and a run is wanted$"):
        find_run("table", output)


def test_a_moved_and_renamed_project_finds_its_own(project, tmp_path):
    new = tmp_path / "new"
    project.rename(new)
    folder = (new / "runs" / "a").rename(new / "runs" / "b")
    settings = continued(folder, read_settings(folder))
    assert settings["data"]["data"] == str(new / "photos")
    assert settings["tracking"] == {**settings["tracking"], "tracking_uri": f"sqlite:///{new}/m.db", "run_name": "b"}
    assert settings["cluster"]["output"] == str(new / "runs")
    assert read_run_note(folder) == ("123", f"sqlite:///{new}/m.db")
    assert tracked_id(folder, f"sqlite:///{new}/m.db") == "123"


def test_a_run_that_moved_alone_finds_what_stayed(project, tmp_path):
    folder = (project / "runs" / "a").rename(tmp_path / "archived")
    assert read_settings(folder)["data"]["data"] == str(project / "photos")
    assert tracked_id(folder, f"sqlite:///{project}/m.db") == "123"


def test_a_copy_is_another_run(project):
    import shutil

    folder = shutil.copytree(project / "runs" / "a", project / "runs" / "b")
    uri = f"sqlite:///{project}/m.db"
    assert (tracked_id(folder, uri), tracked_id(project / "runs" / "a", uri)) == (None, "123")


def test_a_run_of_another_store_is_not_that_run(project):
    assert tracked_id(project / "runs" / "a", "http://host") is None


def test_a_note_has_no_password(tmp_path):
    write_run_note(tmp_path, "123", "http://alice:secret@host")
    assert "secret" not in (tmp_path / "run.json").read_text()
    assert tracked_id(tmp_path, "http://alice:secret@host") == "123"


def test_a_picture_that_fails_takes_no_results_with_it(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("mathtext")

    monkeypatch.setattr("pipelines.run.results.plot_tsne", fail)
    results, folder, said = tmp_path / "results", tmp_path / "run", []
    (results / "adapter").mkdir(parents=True)
    (results / "adapter" / "adapter.json").write_text("{}")
    (results / "knn.json").write_text("{}")
    write_seeds(results / "seeds" / "seeds.parquet", ["1"], ["d"], ["y"], ["test"], np.zeros((1, 2)))
    folder.mkdir()
    copy_results(results, folder, said.append)
    assert said == ["the picture of the seeds could not be made: mathtext"]
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"adapter.json", "knn.json", "seeds.parquet"}


def test_a_file_that_cannot_be_written_is_told_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert writable_file("r.json", "--report") == tmp_path / "r.json"
    for bad in ("no/r.json", ".", "/dev/null/x"):
        with pytest.raises(UserError, match=rf"--report '{bad}' cannot be written: "):
            writable_file(bad, "--report")


def test_recorded_settings_are_whole(project):
    recorded = yaml.safe_load((project / "runs" / "a" / CONFIG).read_text())
    assert from_dict(recorded).data.data == str(project / "photos")
    assert json.loads((project / "runs" / "a" / "run.json").read_text())["folder"] == str(project / "runs" / "a")
