"""Schedulers that are told of an earlier part of the campaign."""

import json

import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from pipelines.campaign.runner import Past, replay, reported

COMMON = {"time_attr": "epoch", "metric": "val/knn10", "mode": "max"}


@pytest.mark.parametrize(
    "scheduler",
    [
        ASHAScheduler(**COMMON, max_t=9, grace_period=8, reduction_factor=3),
        MedianStoppingRule(**COMMON, grace_period=1),
    ],
    ids=["asha", "median"],
)
def test_a_poor_trial_is_stopped_by_what_earlier_ones_reached(scheduler):
    for number in range(4):
        replay(scheduler, f"past {number}", [{"epoch": epoch, "val/knn10": 0.1 * epoch} for epoch in range(1, 10)])
    poor, good = Past("poor"), Past("good")
    for trial, value, wanted in ((good, 0.95, TrialScheduler.CONTINUE), (poor, 0.1, TrialScheduler.STOP)):
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, {"epoch": 8, "val/knn10": value}) == wanted


def test_no_scheduler_takes_it_too():
    replay(FIFOScheduler(), "past", [{"epoch": 1, "val/knn10": 0.1}])


def test_validations_are_read_as_they_were_reported(tmp_path):
    lines = [
        (5, {"train/loss": 1.0}),
        (5, {"val/loss": 0.9, "val/knn10": 0.2}),
        (10, {"val/loss": 0.8, "val/knn10": 0.3}),
    ]
    text = "".join(json.dumps({"step": step, "time": 0.0, "metrics": values}) + "\n" for step, values in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert reported(tmp_path, 2) == [
        {"val/loss": 0.9, "val/knn10": 0.2, "epoch": 2},
        {"val/loss": 0.8, "val/knn10": 0.3, "epoch": 4},
    ]
