"""Trainings on changed images, and of classes that have few images."""

import numpy as np
import pytest
import torch

from metalora.config import from_dict
from metalora.data.augmented import Augmented
from metalora.data.balance import class_weights
from metalora.errors import UserError
from metalora.methods import check_methods

METHODS = {"train": {"augment": ["crop", "flip", "mixup"], "epochs": 2, "warmup_steps": 2, "lr": 3e-3}}


def _state(trainer):
    return {name: tensor.clone() for name, tensor in trainer.learner.model.adapter_state().items()}


def _first(trainer):
    """Return the first micro-batch and its losses."""
    trainer.learner.prepare(begins=True)
    batch = next(iter(trainer.learner.batches(0, 0)))
    return batch, trainer.learner.losses(trainer.module, batch).losses.detach()


def test_resumed_is_uninterrupted_and_the_same_again(make_trainer, tmp_path):
    whole = make_trainer(**METHODS)
    first = whole.steps_per_epoch
    whole.fit()
    expected = _state(whole)
    resumed = make_trainer(**METHODS)
    resumed.fit(resume=tmp_path / f"checkpoint_{first:08d}")
    plain = make_trainer()
    plain.fit()
    assert all(torch.equal(tensor, _state(resumed)[name]) for name, tensor in expected.items())
    assert any(not torch.equal(tensor, _state(plain)[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("kept", [1.0, 0.0])
def test_the_seed_is_that_of_the_unchanged_image_cached_or_not(make_trainer, kept):
    """Features that are cached cannot know of changes, so those that are not cached must not either."""
    data = {"keep_images": kept}
    cached, fresh = (
        _first(make_trainer(**METHODS, data={**data, "batch_size": 12}, mapping={"cache_features": cache}))
        for cache in (True, False)
    )
    assert isinstance(cached[0], Augmented)
    assert cached[0].plain.numel() == 0
    assert fresh[0].plain.shape == (12, 3, 28, 28)
    assert torch.equal(cached[0].batch.codes, fresh[0].batch.codes)
    assert torch.allclose(cached[1], fresh[1], atol=1e-5)


def test_the_loss_of_a_mixture_is_that_of_both_labels_by_their_shares(make_trainer):
    trainer = make_trainer(train={"augment": [{"name": "mixup", "alpha": 1.0}], "objective": "classification"})
    batch, losses = _first(trainer)
    with torch.no_grad():
        model = trainer.learner.model
        images = trainer.learner.feed.prepare(batch.batch.codes)
        scores = model.head(model.network(images, trainer.learner.evaluator.condition(images, batch.batch.rows)))
    soft = torch.zeros(12, 3)
    for i in range(12):
        soft[i, batch.batch.labels[i]] += batch.shares[i]
        soft[i, batch.others[i]] += 1 - batch.shares[i]
    assert (batch.shares < 1).any()
    assert torch.allclose(losses, torch.nn.functional.cross_entropy(scores, soft, reduction="none"), atol=1e-5)


def test_validation_and_gallery_are_of_unchanged_images(make_trainer):
    plain, changed = make_trainer(), make_trainer(**METHODS)
    for trainer in (plain, changed):
        trainer.learner.prepare(begins=True)
    assert plain.learner.validate() == changed.learner.validate()


def test_a_mixture_has_no_place_in_an_episode(make_trainer):
    with pytest.raises(UserError, match="--augment mixup does not go with --objective episodic"):
        make_trainer(train={"augment": ["mixup"], "objective": {"name": "episodic", "classes": 3, "images": 2}})


def test_a_method_named_twice_is_refused():
    with pytest.raises(UserError, match="'mixup' is named twice"):
        check_methods(from_dict({"train": {"augment": ["mixup", "flip", "mixup"]}}))


def test_class_weights_are_scikit_learns_in_each_domain():
    from sklearn.utils.class_weight import compute_class_weight

    generator = np.random.default_rng(0)
    domain, label = generator.integers(0, 3, 400), generator.choice(4, 400, p=[0.6, 0.3, 0.08, 0.02])
    label[(domain == 1) & (label == 2)] = 0  # a domain without one of the classes
    weights = class_weights(label, domain)
    for d in range(3):
        classes = np.unique(label[domain == d])
        expected = compute_class_weight("balanced", classes=classes, y=label[domain == d])
        assert weights[d, classes] == pytest.approx(expected, rel=1e-6)
    assert weights[1, 2] == 0


def test_losses_are_weighted_by_class(make_trainer):
    plain, weighted = make_trainer(), make_trainer(train={"class_weights": "balanced"})
    weighted.learner.weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    batch, losses = _first(plain)
    _, changed = _first(weighted)
    factors = weighted.learner.weights[batch.domains, batch.labels]
    assert torch.allclose(changed, losses * factors, rtol=1e-5)


def test_episodes_draw_classes_themselves(make_trainer):
    with pytest.raises(UserError, match="--class-sampling balanced does not go with --objective episodic"):
        make_trainer(
            train={"objective": {"name": "episodic", "classes": 3, "images": 2}},
            data={"class_sampling": "balanced"},
        )
