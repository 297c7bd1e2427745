"""The recorder of a campaign, without a cluster."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metalora.config import from_dict
from pipelines.campaign.plan import CampaignConfig, Plan
from pipelines.campaign.recorder import Recorder
from pipelines.campaign.spaces import Space
from pipelines.campaign.trials import Suggestion, read_trials
from pipelines.run.folder import METRICS, TRIALS
from pipelines.run.log import read_metrics

TRIAL = Suggestion.of(0, {"format": "lora"}, 0)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What lies on the board."""
    monkeypatch.setattr("ray.get", lambda events: events)
    return []


@pytest.fixture
def recorder(tmp_path: Path, waiting: list[Any]) -> Recorder:
    board = SimpleNamespace(pull=SimpleNamespace(remote=lambda: [waiting.pop(0) for _ in range(len(waiting))]))
    display = SimpleNamespace(update=lambda records: None, say=print)
    plan = Plan(CampaignConfig(), from_dict({"tracking": {"tracking_uri": "none"}}), Space("lone", (), {}, {}))
    return Recorder(plan, tmp_path, None, board, display, [])  # type: ignore[arg-type]


def test_a_trial_that_tune_gave_up_before_it_began_is_recorded(recorder: Recorder, tmp_path: Path) -> None:
    reason = tmp_path / "error.txt"
    reason.write_text("it could not be started", encoding="utf-8")
    lost = SimpleNamespace(config={"trial": TRIAL}, status="ERROR", error_file=str(reason))
    told = SimpleNamespace(config={"trial": Suggestion.of(1, {"format": "lora"}, 0)}, status="ERROR", error_file=None)
    through = SimpleNamespace(config={"trial": Suggestion.of(2, {"format": "lora"}, 0)}, status="TERMINATED")
    with recorder:
        recorder.on_trial_start(0, [], told)
        recorder.on_trial_error(0, [], told)
        recorder.on_experiment_end([lost, told, through])
    assert [(record.trial.number, record.status, record.error) for record in read_trials(tmp_path)] == [
        (0, "failed", "it could not be started"),
        (1, "failed", "no reason is known"),
    ]


def test_a_checkpoint_is_noted_after_what_was_reported_before_it(
    recorder: Recorder, tmp_path: Path, waiting: list[Any]
) -> None:
    """A driver that dies right then goes on from the checkpoint, and the trial does not report that again."""
    trial = SimpleNamespace(config={"trial": TRIAL})
    recorder.on_trial_start(0, [], trial)
    recorder.jobs.get_nowait()()

    waiting.append(("metrics", (TRIAL.name, 5, {"val/loss": 1.0})))
    checkpoint = SimpleNamespace(path="/there", filesystem=SimpleNamespace(type_name="local"))
    recorder.on_checkpoint(0, [], trial, checkpoint)
    recorder.jobs.get_nowait()()

    (record,) = read_trials(tmp_path)
    assert record.checkpoint == "/there"
    assert [(step, values) for step, _, values in read_metrics(tmp_path / TRIALS / TRIAL.name / METRICS)] == [
        (5, {"val/loss": 1.0})
    ]
