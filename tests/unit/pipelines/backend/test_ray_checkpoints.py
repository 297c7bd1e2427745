import json

import pytest
import ray

from pipelines.backend.ray_checkpoints import RAY_STATE, drop_unusable


@pytest.fixture
def state(tmp_path):
    for step in (3, 6):
        (tmp_path / f"checkpoint_{step:08d}").mkdir()
    results = [{"checkpoint_dir_name": f"checkpoint_{step:08d}", "metrics": {"step": step}} for step in (3, 6)]
    note = {"ray_version": ray.__version__, "checkpoint_results": results, "latest_checkpoint_result": results[-1],
            "pending_training_results": [], "current_report_index": 2}  # fmt: skip
    (tmp_path / RAY_STATE).write_text(json.dumps(note))
    return tmp_path / RAY_STATE


def test_rays_own_note_stays(state):
    before = state.read_text()
    drop_unusable(state)
    assert state.read_text() == before
    drop_unusable(state.with_name("none.json"))


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.clear(),
        lambda note: note.update(ray_version="0"),
        lambda note: note.update(checkpoint_results=3),
        lambda note: note["checkpoint_results"][0].update(checkpoint_dir_name="../../photos"),
        lambda note: note["checkpoint_results"][0].update(checkpoint_dir_name="checkpoint_00000009"),
        lambda note: note["latest_checkpoint_result"].update(checkpoint_dir_name=".."),
        lambda note: note["pending_training_results"].append({"checkpoint_dir_name": "/"}),
    ],
)
def test_a_note_that_names_other_folders_goes(state, change):
    note = json.loads(state.read_text())
    change(note)
    state.write_text(json.dumps(note))
    drop_unusable(state)
    assert not state.exists()


@pytest.mark.parametrize("content", ["", "{", "[" * 10**5, "null"])
def test_a_damaged_note_goes(state, content):
    state.write_text(content)
    drop_unusable(state)
    assert not state.exists()


def test_a_link_goes_and_not_what_it_leads_to(state, tmp_path):
    state.rename(tmp_path / "elsewhere.json")
    state.symlink_to(tmp_path / "elsewhere.json")
    drop_unusable(state)
    assert not state.is_symlink()
    assert (tmp_path / "elsewhere.json").exists()
