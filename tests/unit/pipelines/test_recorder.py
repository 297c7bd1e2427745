"""The recorder of a campaign, without a cluster."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metalora.config import from_dict
from pipelines.campaign import TRIALS, CampaignConfig, Plan, read_trials
from pipelines.listener import read_metrics
from pipelines.recorder import Recorder
from pipelines.results import METRICS
from pipelines.search import Suggestion
from pipelines.spaces import Space

TRIAL = Suggestion.of(0, {"format": "lora"}, 0)


def test_a_checkpoint_is_noted_after_what_was_reported_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that dies right then goes on from the checkpoint, and the trial does not report that again."""
    waiting: list[Any] = []
    monkeypatch.setattr("ray.get", lambda events: events)
    board = SimpleNamespace(pull=SimpleNamespace(remote=lambda: [waiting.pop(0) for _ in range(len(waiting))]))
    display = SimpleNamespace(update=lambda records: None, say=print)
    plan = Plan(CampaignConfig(), from_dict({"tracking": {"tracking_uri": "none"}}), Space("lone", (), {}, {}))
    recorder = Recorder(plan, tmp_path, None, board, display, [])  # type: ignore[arg-type]
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
