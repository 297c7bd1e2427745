"""The best validation's weights, the end before the last epoch, and trainings that are made longer."""

import json
import math

import pytest
import torch

from metalora.adapters.files import read_adapter
from metalora.build import check_training
from metalora.config import from_dict
from metalora.errors import UserError
from metalora.train.selection import Selection

BEST = {"keep": "best", "monitor": "val/loss"}


@pytest.fixture
def make(make_trainer):
    """Make a trainer whose validations have given values of one metric, in turn."""

    def made(values, monitor="val/loss", **train):
        trainer = make_trainer(train={"lr": 3e-3, "warmup_steps": 2, "monitor": monitor, **train})
        given = iter(values)
        trainer.learner.validate = lambda: {monitor: next(given)}
        return trainer

    return made


def _weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.learner.model.adapter_state().items()}


def _same(a, b):
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_the_weights_of_the_best_validation_are_tested_and_saved(make, tmp_path):
    trainer = make([0.5, 0.3, 0.4], epochs=3, keep="best")
    seen = []
    validate = trainer.learner.validate
    trainer.learner.validate = lambda: (seen.append(_weights(trainer)), validate())[1]
    trainer.fit()
    assert _same(seen[1], _weights(trainer))
    assert not _same(seen[2], _weights(trainer))
    assert trainer.reporter.heard["best/epoch"] == 2
    assert trainer.reporter.heard["val/loss"] == 0.3  # what a campaign takes for the trial's value
    saved, _ = read_adapter(tmp_path / f"checkpoint_{trainer.step:08d}" / "adapter")
    assert _same(seen[1], saved)


def test_without_it_the_last_weights_are_kept(make):
    trainer = make([0.5, 0.3, 0.4], epochs=3)
    last = {}
    validate = trainer.learner.validate
    trainer.learner.validate = lambda: (last.update(_weights(trainer)), validate())[1]
    trainer.fit()
    assert _same(last, _weights(trainer))
    assert "best/epoch" not in trainer.reporter.heard


@pytest.mark.parametrize(
    ("monitor", "values", "ends"),
    [
        ("val/loss", [0.5, 0.6, 0.7, 0.1], 3),
        ("val/loss", [0.5, math.nan, math.nan, 0.1], 3),
        ("val/loss", [math.nan, 0.6, 0.5, 0.4], 4),
        ("val/accuracy", [0.5, 0.6, 0.6, 0.6], 4),
        ("val/accuracy", [0.5, 0.4, 0.3, 0.9], 3),
    ],
)
def test_a_training_ends_after_so_many_validations_without_a_better_one(make, monitor, values, ends):
    trainer = make(values, monitor, epochs=4, patience=2)
    trainer.fit()
    assert trainer.step == ends * trainer.steps_per_epoch
    assert "test/knn3" in trainer.reporter.heard


def test_resumed_is_uninterrupted(make, tmp_path):
    whole = make([0.3, 0.5, 0.4, 0.4], epochs=4, keep="best", patience=3)
    whole.fit()
    resumed = make([0.5, 0.4, 0.4], epochs=4, keep="best", patience=3)
    resumed.fit(resume=tmp_path / f"checkpoint_{whole.steps_per_epoch:08d}")
    assert resumed.step == whole.step
    assert resumed.reporter.heard["best/epoch"] == 1
    assert _same(_weights(whole), _weights(resumed))


def test_a_finished_training_goes_on_from_its_last_weights_with_the_longer_schedule(make, tmp_path):
    first = make([0.3, 0.5], epochs=2, keep="best")
    last = {}
    validate = first.learner.validate
    first.learner.validate = lambda: (last.update(_weights(first)), validate())[1]
    first.fit()
    end = tmp_path / f"checkpoint_{first.step:08d}"
    assert not _same(last, _weights(first))
    longer = make([0.2], epochs=3, keep="best")
    state = longer.learner.read(end)
    assert _same(last, state["model"])
    longer.fit(resume=end)
    assert longer.step == 3 * longer.steps_per_epoch
    assert longer.reporter.heard["best/epoch"] == 3
    rates = [group["lr"] for group in longer.optimizer.param_groups]
    assert max(rates) == pytest.approx(0, abs=1e-9)
    assert json.loads((tmp_path / f"checkpoint_{longer.step:08d}" / "knn.json").read_text())


def test_a_finished_training_that_is_no_longer_does_nothing(make, tmp_path):
    first = make([0.3, 0.5], epochs=2)
    first.fit()
    again = make([], epochs=2)
    again.fit(resume=tmp_path / f"checkpoint_{first.step:08d}")
    assert again.step == 0


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"epochs": 2}, {"epochs": 1}, "train.epochs was 2, is 1"),
        ({"epochs": 2, "patience": 3}, {"epochs": 3, "patience": 2}, "train.patience was 3, is 2"),
        ({"epochs": 2, "keep": "best"}, {"epochs": 3}, "train.keep was 'best', is 'last'"),
        ({"epochs": 3, "patience": 1}, {"epochs": 4, "patience": 1}, "ended early, after 1 validations .*--patience"),
    ],
)
def test_a_training_may_become_longer_and_nothing_else(make, tmp_path, before, now, message):
    first = make([0.3, 0.5, 0.6], **before)
    first.fit()
    with pytest.raises(UserError, match=message):
        make([], **now).learner.read(tmp_path / f"checkpoint_{first.step:08d}")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"keep": "best", "monitor": "val/acuracy"}}, "no metric of the validations, did you mean 'val/acc"),
        ({"train": {"patience": 1}, "data": {"val_fraction": 0.0}}, "--patience needs validation images"),
        ({"train": BEST, "data": {"val_fraction": 0.0}}, "--keep best needs validation images"),
    ],
)
def test_what_cannot_be_watched_is_refused_before_the_training(make_trainer, sections, message):
    learner = make_trainer(**sections).learner
    with pytest.raises(UserError, match=message):
        check_training(learner.config, learner.model, learner.table, learner.feed.inputs, 1)


def test_validations_are_needed():
    with pytest.raises(UserError, match="validate_every must not be 0"):
        from_dict({"train": {"patience": 1}, "evaluate": {"validate_every": 0}})


def test_a_domains_metric_can_be_watched(make_trainer, tree):
    learner = make_trainer(train={"keep": "best", "monitor": "val/knn3/paper"}).learner
    check_training(learner.config, learner.model, learner.table, learner.feed.inputs, 1)
    assert Selection(learner.config).monitor == "val/knn3/paper"
    assert Selection(from_dict({})).monitor == "val/knn10"
