import numpy as np
import pytest

from metalora.data import BatchSampler, epoch_order
from metalora.errors import UserError

UNEVEN = np.array([0] * 50 + [3] * 17 + [5] * 9)


def take_all(domain, epochs=(0,), step=0, **settings):
    sampler = BatchSampler(domain, 24, seed=1, **settings)
    batches = []
    for epoch in epochs:
        sampler.set_position(epoch, step)
        batches += list(sampler)
    return batches


def test_natural_order_is_a_permutation_that_changes_with_seed_and_epoch():
    order = epoch_order(UNEVEN, 1, 0, "natural")
    assert sorted(order) == list(range(len(UNEVEN)))
    assert order.tolist() == epoch_order(UNEVEN, 1, 0, "natural").tolist()
    assert order.tolist() != epoch_order(UNEVEN, 1, 1, "natural").tolist()
    assert order.tolist() != epoch_order(UNEVEN, 2, 0, "natural").tolist()


def test_balanced_order_changes_with_seed_and_epoch():
    order = epoch_order(UNEVEN, 1, 0, "balanced").tolist()
    assert order == epoch_order(UNEVEN, 1, 0, "balanced").tolist()
    assert order != epoch_order(UNEVEN, 1, 1, "balanced").tolist()
    assert order != epoch_order(UNEVEN, 2, 0, "balanced").tolist()


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_block_of_a_balanced_epoch_holds_each_domain_once(epoch):
    order = epoch_order(UNEVEN, 1, epoch, "balanced")
    assert len(order) == len(UNEVEN)
    drawn = UNEVEN[order]
    blocks = drawn[: len(drawn) // 3 * 3].reshape(-1, 3)
    assert (np.sort(blocks, axis=1) == [0, 3, 5]).all()
    assert len(np.unique(blocks, axis=0)) > 1
    assert len(set(drawn[len(blocks) * 3 :])) == len(drawn) - len(blocks) * 3


def test_balanced_streams_go_through_a_whole_domain_before_they_repeat_over_epochs():
    # 81 images of 3 domains: 27 of each domain an epoch, and no block is cut
    domain = np.array([0] * 54 + [1] * 18 + [2] * 9)
    drawn = np.concatenate([epoch_order(domain, 1, epoch, "balanced") for epoch in range(2)])
    counts = np.bincount(drawn, minlength=len(domain))
    assert (counts == np.repeat([1, 3, 6], [54, 18, 9])).all()
    first_pass = drawn[domain[drawn] == 2][:9]
    second_pass = drawn[domain[drawn] == 2][9:18]
    assert sorted(first_pass) == sorted(second_pass) == list(range(72, 81))
    assert first_pass.tolist() != second_pass.tolist()


@pytest.mark.parametrize("sampling", ["balanced", "natural"])
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_ranks_together_see_what_one_alone_would(sampling, world, accumulate):
    alone = take_all(UNEVEN, (0, 1), sampling=sampling)
    assert len(alone) == 2 * (len(UNEVEN) // 24)
    ranks = [
        take_all(UNEVEN, (0, 1), sampling=sampling, world=world, rank=rank, accumulate=accumulate)
        for rank in range(world)
    ]
    assert all(len(piece) == 24 // world // accumulate for batches in ranks for piece in batches)
    for step, batch in enumerate(alone):
        seen = []
        for micro in range(step * accumulate, (step + 1) * accumulate):
            pieces = [batches[micro] for batches in ranks]
            seen += [position for together in zip(*pieces, strict=True) for position in together]
        assert seen == batch


def test_a_batch_is_a_stretch_of_the_epochs_order():
    order = epoch_order(UNEVEN, 1, 2, "balanced").tolist()
    assert take_all(UNEVEN, (2,)) == [order[0:24], order[24:48], order[48:72]]


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_resuming_within_an_epoch_yields_its_rest(step):
    settings = {"accumulate": 2, "world": 2, "rank": 1}
    sampler = BatchSampler(UNEVEN, 24, seed=1, **settings)
    assert sampler.steps == 3
    sampler.set_position(4, step)
    assert len(sampler) == len(list(sampler)) == (3 - step) * 2
    assert list(sampler) == take_all(UNEVEN, (4,), **settings)[step * 2 :]


def test_a_position_outside_the_epoch_is_refused():
    with pytest.raises(ValueError, match="step 4 is not within an epoch of 3 steps"):
        take_all(UNEVEN, step=4)


def test_too_few_images_for_a_batch():
    with pytest.raises(UserError, match="batch_size 24 exceeds the 9 images of the train split"):
        BatchSampler(UNEVEN[-9:], 24, seed=0)


def test_a_batch_that_does_not_divide():
    with pytest.raises(UserError, match="batch_size 24 must be a multiple of workers x accumulate = 5 x 1"):
        BatchSampler(UNEVEN, 24, seed=0, world=5)


@pytest.mark.parametrize("sampling", ["balanced", "natural"])
def test_classes_of_a_domain_are_shown_equally_often(sampling):
    domain = np.array([0] * 60 + [1] * 30)
    label = np.array([0] * 50 + [1] * 8 + [2] * 2 + [0] * 20 + [1] * 10)
    seen = np.concatenate([epoch_order(domain, 3, epoch, sampling, label) for epoch in range(12)])
    for d in range(2) if sampling == "balanced" else (None,):
        among = seen if d is None else seen[domain[seen] == d]
        counts = np.unique(label[among], return_counts=True)[1]
        assert counts.max() - counts.min() <= 24  # what a cut block leaves, in each of twelve epochs
    for group in ((domain == 0) & (label == 2), (domain == 1) & (label == 1)):
        times = np.unique(seen[group[seen]], return_counts=True)[1]
        assert len(times) == group.sum()  # each image, as often as the others of its class
        assert times.max() - times.min() <= 4  # likewise
    assert len(epoch_order(domain, 3, 0, sampling, label)) == len(domain)


def test_class_sampling_leaves_the_order_of_other_trainings_as_it_was():
    """These positions were drawn by the code before there was class sampling."""
    domain = np.repeat([0, 1, 2], [7, 5, 3])
    assert epoch_order(domain, 4, 2, "balanced").tolist() == [11, 4, 14, 0, 8, 13, 3, 12, 10, 9, 13, 1, 14, 4, 7]
    assert epoch_order(domain, 4, 2, "natural").tolist() == [8, 11, 7, 3, 5, 4, 6, 0, 13, 9, 14, 10, 2, 1, 12]
