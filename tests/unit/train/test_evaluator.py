"""Held-out domains: no part in training, scored at the end."""

import json

import numpy as np
import pytest
import torch

from metalora.errors import UserError
from metalora.evaluate.given_seeds import GivenSeeds


def _fit(trainer):
    trainer.fit()
    listener = trainer.reporter
    report = json.loads((listener.folder / f"checkpoint_{trainer.step:08d}" / "knn.json").read_text())
    return listener.heard, report


def test_held_out_domains_are_scored_against_either_gallery(make_trainer):
    trainer = make_trainer(data={"holdout_domains": ("slate",)})
    heard, report = _fit(trainer)
    assert set(report["adapted"]["by_domain"]) == set(report["original"]["by_domain"]) == {"paper"}
    for part in ("original", "adapted"):
        for gallery in ("seen", "unseen"):
            assert set(report[part]["holdout"][gallery]["by_domain"]) == {"slate"}
            assert 0 <= report[part]["holdout"][gallery]["linear"] <= 1
    unseen = report["adapted"]["holdout"]["unseen"]
    assert heard["holdout/unseen/knn3"] == unseen["overall"]["uniform"]["3"]
    assert heard["holdout/unseen/linear"] == unseen["linear"]
    assert heard["holdout/knn1"] == report["adapted"]["holdout"]["seen"]["overall"]["uniform"]["1"]
    assert heard["test/linear"] == report["adapted"]["linear"]
    assert "holdout/linear" in heard
    assert {"val/knn3/paper", "val/knn3/slate"} & heard.keys() == {"val/knn3/paper"}


def test_held_out_domains_have_no_part_in_training(make_trainer, tmp_path):
    trainers = []
    for name, setting in (("without", "exclude_domains"), ("held_out", "holdout_domains")):
        (tmp_path / name).mkdir()
        trainers.append(make_trainer(tmp_path / name, data={setting: ("slate",)}))
        trainers[-1].fit()
    without, held_out = (trainer.learner.model.adapter_state() for trainer in trainers)
    assert without.keys() == held_out.keys()
    for name, tensor in without.items():
        assert torch.equal(tensor, held_out[name]), name
    for name, value in trainers[0].reporter.heard.items():
        if name.startswith(("val/", "test/")):
            assert trainers[1].reporter.heard[name] == value, name


def test_without_held_out_domains_there_is_no_such_part(make_trainer):
    heard, report = _fit(make_trainer())
    assert "holdout" not in report["adapted"]
    assert not any(name.startswith("holdout/") for name in heard)


def test_too_few_held_out_images_are_told_before_training(make_trainer):
    with pytest.raises(UserError, match=r"K = 99 needs as many train images of the held-out domains; got \d+"):
        make_trainer(data={"holdout_domains": ("slate",)}, evaluate={"knn": (1, 99)})


def test_given_seeds_are_what_the_layers_read(make_trainer):
    """Task seeds: every image of a task is embedded with the mean seed of the task's train images."""
    trainer = make_trainer(mapping={"seed_granularity": "task"}, data={"holdout_domains": ("slate",)})
    trainer.fit()
    evaluator, table = trainer.learner.evaluator, trainer.learner.table
    support = np.concatenate([table.rows("train"), table.holdout_rows("train")])
    given = evaluator._task_seeds(support)
    rows, seeds = evaluator._seeds(support)
    for domain in (0, 1):
        mean = seeds[torch.from_numpy(table.domain)[rows] == domain].mean(0)
        of_domain = torch.from_numpy(np.flatnonzero(table.domain == domain))
        assert torch.allclose(given.get(of_domain), mean.expand(len(of_domain), -1))
    queries = table.holdout_rows("test")[:3]
    features = evaluator._features("test", queries, given).features
    images = evaluator.feed.prepare(evaluator.feed._kept(queries).codes)
    trainer.learner.model.network.slot.fill(given.get(torch.from_numpy(queries)))
    with torch.no_grad():
        assert torch.allclose(features, trainer.learner.model.network(images), atol=1e-6)


def test_shuffling_hands_the_same_seeds_round():
    given = GivenSeeds.own(torch.tensor([4, 1, 3]), torch.arange(6.0).view(3, 2), 5)
    rows = torch.tensor([1, 3, 4])
    assert given.get(rows).tolist() == [[2, 3], [4, 5], [0, 1]]
    shuffled = given.shuffled(rows, seed=1).get(rows)
    assert sorted(shuffled.tolist()) == [[0, 1], [2, 3], [4, 5]]
    assert not torch.equal(shuffled, given.get(rows))
