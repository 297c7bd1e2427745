"""The recorder of a campaign, without a cluster."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metalora.config import from_dict
from pipelines.backend.mailbox import Event, Failure, Mailbox, Metrics
from pipelines.campaign.plan import CampaignConfig, Plan
from pipelines.campaign.recorder import Recorder
from pipelines.campaign.spaces import Space
from pipelines.campaign.trials import TrialSpec, read_trials
from pipelines.run.folder import METRICS, TRIALS
from pipelines.run.log import read_metrics

TRIAL = TrialSpec.of(0, {"format": "lora"}, 0)


@pytest.fixture
def display() -> SimpleNamespace:
    return SimpleNamespace(update=lambda records: None, say=print, progress=lambda name, progress: None)


@pytest.fixture
def recorder(tmp_path: Path, mailbox: Mailbox, display: Any) -> Recorder:
    plan = Plan(CampaignConfig(), from_dict({"tracking": {"tracking_uri": "none"}}), Space("lone", (), {}, {}))
    return Recorder(plan, tmp_path, None, mailbox, display, [])


def recorded(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return what the trial's ``metrics.jsonl`` has."""
    return [(step, dict(values)) for step, _, values in read_metrics(folder / TRIALS / TRIAL.name / METRICS)]


def test_a_trial_that_tune_gave_up_before_it_began_is_recorded(recorder: Recorder, tmp_path: Path) -> None:
    reason = tmp_path / "error.txt"
    reason.write_text("it could not be started", encoding="utf-8")
    lost = SimpleNamespace(config={"trial": TRIAL}, status="ERROR", error_file=str(reason))
    told = SimpleNamespace(config={"trial": TrialSpec.of(1, {"format": "lora"}, 0)}, status="ERROR", error_file=None)
    through = SimpleNamespace(config={"trial": TrialSpec.of(2, {"format": "lora"}, 0)}, status="TERMINATED")
    with recorder:
        recorder.on_trial_start(0, [], told)
        recorder.on_trial_error(0, [], told)
        recorder.on_experiment_end([lost, told, through])
    assert [(record.trial.number, record.status, record.error) for record in read_trials(tmp_path)] == [
        (0, "failed", "it could not be started"),
        (1, "failed", "no reason is known"),
    ]


def test_a_checkpoint_is_noted_after_what_was_reported_before_it(
    recorder: Recorder, tmp_path: Path, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that dies right then goes on from the checkpoint, and the trial does not report that again."""
    trial = SimpleNamespace(config={"trial": TRIAL})
    recorder.on_trial_start(0, [], trial)
    recorder.courier.round()

    checkpoint = SimpleNamespace(path="/there", filesystem=SimpleNamespace(type_name="local"))
    seen: list[Any] = []
    update = recorder._update
    monkeypatch.setattr(recorder, "_update", lambda *a, **k: (seen.append(recorded(tmp_path)), update(*a, **k)))
    pull = mailbox.pull
    late = [[], [Event(TRIAL.name, Metrics(5, {"val/loss": 1.0}))]]  # it comes while the courier is at work
    monkeypatch.setattr(mailbox, "pull", lambda reader: [*pull(reader), *(late.pop(0) if late else [])])
    recorder.on_checkpoint(0, [], trial, checkpoint)
    recorder.courier.round()

    (record,) = read_trials(tmp_path)
    assert record.checkpoint == "/there"
    assert seen == [[(5, {"val/loss": 1.0})]]


def test_what_comes_before_tune_tells_of_the_trial_waits(recorder: Recorder, tmp_path: Path, mailbox: Mailbox) -> None:
    for step in (1, 2):
        mailbox.post(Event(TRIAL.name, Metrics(step, {"train/loss": float(step)})))
        recorder.courier.round()
    assert read_trials(tmp_path) == []
    recorder.on_trial_start(0, [], SimpleNamespace(config={"trial": TRIAL}))
    mailbox.post(Event(TRIAL.name, Metrics(3, {"train/loss": 3.0})))
    recorder.courier.round()
    assert sorted(recorded(tmp_path)) == [(step, {"train/loss": float(step)}) for step in (1, 2, 3)]


def test_a_trial_that_says_why_it_failed_is_closed_once(recorder: Recorder, tmp_path: Path, mailbox: Mailbox) -> None:
    trial = SimpleNamespace(config={"trial": TRIAL}, error_file=None)
    mailbox.post(Event(TRIAL.name, Failure("the loss is not finite")))
    recorder.courier.round()
    recorder.on_trial_error(0, [], trial)
    recorder.courier.round()
    mailbox.post(Event(TRIAL.name, Failure("again")))
    mailbox.post(Event(TRIAL.name, Metrics(9, {"train/loss": 1.0})))
    recorder.on_trial_complete(0, [], trial)
    recorder.courier.round()
    (record,) = read_trials(tmp_path)
    assert (record.status, record.error) == ("failed", "the loss is not finite")
    assert recorder.early == []
    assert recorded(tmp_path) == []


def test_a_full_disk_does_not_end_the_recording(
    recorder: Recorder, tmp_path: Path, mailbox: Mailbox, display: Any
) -> None:
    said: list[str] = []
    recorder.courier.say = said.append
    trial = SimpleNamespace(config={"trial": TRIAL})
    (tmp_path / TRIALS).write_text("in the way")
    recorder.on_trial_start(0, [], trial)
    recorder.courier.round()
    assert "could not be recorded: FileExistsError" in said[0] or "NotADirectoryError" in said[0]
    (tmp_path / TRIALS).unlink()
    recorder.on_trial_start(0, [], trial)
    recorder.courier.round()
    assert [record.trial for record in read_trials(tmp_path)] == [TRIAL]
