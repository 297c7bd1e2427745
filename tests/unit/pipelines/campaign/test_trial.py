"""What Ray Tune is told of a trial."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from metalora.train.reporter import Progress
from pipelines.backend.mailbox import Event, Message, Metrics
from pipelines.campaign import trial as module
from pipelines.campaign.trial import TrialReporter


@pytest.fixture
def told(monkeypatch):
    """What has been reported: results and checkpoints."""
    reports = []
    tune = SimpleNamespace(
        report=lambda result, checkpoint: reports.append((result, checkpoint)),
        Checkpoint=SimpleNamespace(from_directory=lambda folder: folder),
    )
    monkeypatch.setattr(module, "tune", tune)
    return reports


def hear(reporter: TrialReporter, *contents: object) -> None:
    for content in contents:
        reporter.listen(Event("a", content))  # type: ignore[arg-type]


def test_a_validation_is_told_with_the_checkpoint_that_follows_it(told):
    reporter = TrialReporter(20)
    hear(reporter, Metrics(0, {"parameters": 5.0}), Progress("train", 5, 10, 1, 2), Message("hello"))
    hear(reporter, Metrics(5, {"train/images_per_second": 40.0}), Metrics(5, {"val/loss": 0.5}))
    assert told == []
    reporter.checkpoint(5, Path("/kept"))
    result = {"parameters": 5.0, "step_seconds": 0.5, "val/loss": 0.5, "epoch": 1}
    assert told == [(result, "/kept")]
    hear(reporter, Progress("train", 6, 10, 2, 2))
    assert len(told) == 1


def test_a_validation_without_a_checkpoint_is_told_when_the_next_epoch_begins(told):
    reporter = TrialReporter(20)
    hear(reporter, Progress("train", 5, 10, 1, 2), Metrics(5, {"val/loss": 0.5}), Progress("validate", 1, 2))
    assert told == []
    hear(reporter, Progress("train", 6, 10, 2, 2), Progress("train", 7, 10, 2, 2))
    assert told == [({"val/loss": 0.5, "epoch": 1}, None)]
