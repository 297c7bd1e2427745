"""What a campaign keeps, and what resuming compares."""

from dataclasses import replace

import pytest
import yaml

from metalora.config import from_dict
from metalora.errors import UserError
from pipelines.campaign.plan import CampaignConfig, Plan
from pipelines.campaign.spaces import load_space
from pipelines.campaign.trials import TrialRecord, TrialSpec, best_trial, direction, read_plan, read_trials
from pipelines.options import settings_of
from pipelines.run.folder import CAMPAIGN


def plan(**changes):
    config = from_dict({"train": {"epochs": 3}})
    return replace(Plan(CampaignConfig(objectives=("val/knn10",)), config, load_space("quick"), "abc"), **changes)


def test_records_are_read_back(tmp_path):
    records = [
        TrialRecord(TrialSpec.of(number, {"format": "tr", "rank": 2}, 0), status, error, 10, 2.5, "id", {"epoch": 3.0})
        for number, (status, error) in enumerate([("finished", None), ("failed", "no room"), ("running", None)])
    ]
    for record in reversed(records):
        folder = tmp_path / "trials" / record.trial.name
        folder.mkdir(parents=True)
        record.write(folder)
    assert read_trials(tmp_path) == records


def test_the_same_plan_may_go_on(tmp_path):
    (tmp_path / CAMPAIGN).write_text(yaml.safe_dump(plan().as_dict()))
    plan().check_same(tmp_path)
    more = replace(plan().campaign, trials=50, hours=2.0, concurrent_trials=3)
    plan(campaign=more).check_same(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprint": "def"}, "the data differ"),
        ({"space": load_space("paper")}, r"space\[1\].rank was '4', is 'choice\(1, 2, 4\)'"),
        ({"config": from_dict({"train": {"epochs": 4}})}, "train.epochs was 3, is 4"),
        ({"campaign": CampaignConfig(objectives=("val/knn5",))}, r"objectives was \['val/knn10'\], is \['val/knn5'\]"),
        ({"campaign": CampaignConfig(objectives=("val/knn10",), repeats=2)}, "campaign.repeats was 1, is 2"),
    ],
)
def test_what_changed_is_named(tmp_path, changed, message):
    (tmp_path / CAMPAIGN).write_text(yaml.safe_dump(plan().as_dict()))
    with pytest.raises(UserError, match=message):
        plan(**changed).check_same(tmp_path)


def test_the_numbers_of_images_are_kept_and_may_be_missing(tmp_path):
    images = {"val": {"photo": 3}, "test": {"photo": 4}}
    (tmp_path / CAMPAIGN).write_text(yaml.safe_dump(plan(images=images).as_dict()))
    assert read_plan(tmp_path)["images"] == images
    plan().check_same(tmp_path)
    older = {name: value for name, value in plan().as_dict().items() if name != "images"}
    (tmp_path / CAMPAIGN).write_text(yaml.safe_dump(older))
    plan(images=images).check_same(tmp_path)


def test_what_left_the_space_is_named(tmp_path):
    (tmp_path / CAMPAIGN).write_text(yaml.safe_dump(plan(space=load_space("paper")).as_dict()))
    with pytest.raises(UserError, match=r"space\[2\].format was 'cp', is None"):
        plan().check_same(tmp_path)


def test_the_best_point_counts_by_its_mean_and_gives_its_best_trial():
    def record(number, lr, value, status="finished"):
        return TrialRecord(
            TrialSpec.of(number, {"lr": lr}, number), status, result={"val/knn10": value, "val/loss": value}
        )

    records = [record(0, 1, 0.9), record(1, 1, 0.1), record(2, 2, 0.6), record(3, 2, 0.7), record(4, 3, 1.0, "failed")]
    assert best_trial(records, "val/knn10") == records[3]
    assert best_trial(records, "val/loss") == records[1]
    assert best_trial([records[4]], "val/knn10") is None


def test_directions():
    assert [direction(name) for name in ("val/knn10", "val/loss", "parameters", "step_seconds", "val/accuracy")] == [
        "max", "min", "min", "min", "max",
    ]  # fmt: skip


def test_bad_settings_are_said():
    with pytest.raises(UserError, match="unknown campaign setting 'trails', did you mean 'trials'"):
        settings_of(CampaignConfig, {"trails": 3}, "campaign")
    with pytest.raises(UserError, match="scheduler = 'pbt': input should be 'none', 'asha' or 'median'"):
        settings_of(CampaignConfig, {"scheduler": "pbt"}, "campaign")
