import numpy as np
import pytest

from metalora.data.episodes import EpisodeSampler
from metalora.errors import UserError

GENERATOR = np.random.default_rng(0)
LABEL = GENERATOR.integers(0, 6, 200)
DOMAIN = GENERATOR.choice([0, 2, 5], 200)


def batches(epoch=0, step=0, **settings):
    arguments = {"classes": 3, "images": 2, "one_task": False, "seed": 1, **settings}
    sampler = EpisodeSampler(LABEL, DOMAIN, 24, **arguments)
    sampler.set_position(epoch, step)
    return list(sampler)


def test_an_episode_holds_the_same_number_of_different_images_of_each_class():
    for batch in batches():
        assert len(batch) == 24
        for episode in np.array(batch).reshape(-1, 3, 2):
            assert len(np.unique(episode)) == 6
            labels = LABEL[episode]
            assert (labels == labels[:, :1]).all()
            assert len(np.unique(labels)) == 3


def test_one_task_a_step_in_turn():
    for epoch in (0, 1):
        tasks = [np.unique(DOMAIN[batch]).tolist() for batch in batches(epoch, one_task=True)]
        steps = len(LABEL) // 24
        assert tasks == [[(0, 2, 5)[(epoch * steps + step) % 3]] for step in range(steps)]


def test_the_order_follows_from_seed_and_epoch_alone():
    assert batches() == batches()
    assert batches() != batches(epoch=1)
    assert batches() != batches(seed=2)
    assert batches(step=3) == batches()[3:]


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_micro_batches_share_whole_episodes(world, accumulate):
    ranks = [batches(rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    for number, whole in enumerate(batches()):
        pieces = [piece for rank in ranks for piece in rank[number * accumulate : (number + 1) * accumulate]]
        episodes = np.concatenate(pieces).reshape(-1, 6).tolist()
        assert sorted(episodes) == sorted(np.array(whole).reshape(-1, 6).tolist())


def test_a_small_class_shows_images_twice():
    label = np.array([0] * 2 + [1] * 30 + [2])
    sampler = EpisodeSampler(label, np.zeros(33, int), 10, classes=2, images=5, one_task=True, seed=0)
    for batch in sampler:
        rows = np.array(batch)
        assert set(label[rows]) == {0, 1}, "a class with one image has no neighbour"
        assert len(np.unique(rows[label[rows] == 0])) == 2
        assert len(np.unique(rows[label[rows] == 1])) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 5}, "batch_size 24 must be a multiple of 10, for whole episodes: 5 classes x 2 images x"),
        ({"world": 8}, "a multiple of 48, for whole episodes: 3 classes x 2 images x 8 workers x 1 micro-batches"),
        ({"classes": 12}, "an episode of 12 classes exceeds the 6 labels of which the train split has two images"),
        ({"classes": 12, "one_task": True}, "exceeds the 6 labels of which a task has two images"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(UserError, match=message):
        batches(**settings)
