"""Random changes of train images: what they do, and on what they depend."""

import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from metalora.data.augmentations import AUGMENTATIONS
from metalora.data.augmented import Augment, AugmentedDataset, Drawn, DrawnSampler
from metalora.data.dataset import Batch
from metalora.data.loaders import train_loader
from metalora.data.sampler import BatchSampler
from metalora.errors import UserError

SIZE = (3, 24, 20)
NAMES = list(AUGMENTATIONS)


class Images(torch.utils.data.Dataset):
    """Twelve photo-like images of two domains and three labels."""

    domain = np.array([0] * 8 + [1] * 4)
    label = np.arange(12) % 3

    def __init__(self):
        noise = torch.rand(12, 3, 6, 5, generator=torch.Generator().manual_seed(0))
        self.images = (torch.nn.functional.interpolate(noise, SIZE[1:], mode="bilinear") * 255).to(torch.uint8)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return Batch(self.images[index], int(self.label[index]), int(self.domain[index]), 100 + index)


def _dataset(*methods, random_seed=0, plain=False):
    made = tuple(AUGMENTATIONS.make(one) for one in methods)
    return AugmentedDataset(Images(), Images.domain, SIZE, Augment(made, random_seed, plain))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_changes_images_and_keeps_shape_type_row_and_label(name):
    dataset, plain = _dataset(name), Images()
    items = [dataset[Drawn(i, 0, i)] for i in range(12)]
    for i, item in enumerate(items):
        assert item.batch.codes.shape == SIZE
        assert item.batch.codes.dtype == torch.uint8
        assert (item.batch.labels, item.batch.domains, item.batch.rows) == (*plain[i][1:3], 100 + i)
        assert item.plain.numel() == 0
    assert any(not torch.equal(item.batch.codes, plain[i].codes) for i, item in enumerate(items))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_depends_on_random_seed_epoch_and_place_alone(name):
    first, again = _dataset(name), pickle.loads(pickle.dumps(_dataset(name)))
    before = torch.get_rng_state()
    one = torch.stack([first[Drawn(0, 1, place)].batch.codes for place in range(20)])
    assert torch.equal(torch.get_rng_state(), before)  # the training's own generator is left alone
    torch.manual_seed(5)
    torch.rand(7)
    for place in reversed(range(20)):
        assert torch.equal(again[Drawn(0, 1, place)].batch.codes, one[place])
    others = _dataset(name, random_seed=1)
    for dataset, epoch in ((others, 1), (first, 2)):
        assert not torch.equal(torch.stack([dataset[Drawn(0, epoch, p)].batch.codes for p in range(20)]), one)
    assert len({tuple(image.flatten().tolist()) for image in one}) > 1  # nor is it the same for an image shown twice


def test_changes_are_torchvisions():
    dataset, image = _dataset("flip", "trivial_augment"), Images()[3].codes
    seeds = np.random.SeedSequence([4, 0, 2, 9]).generate_state(1, np.uint64)[0] >> 1
    torch.manual_seed(int(seeds))
    expected = v2.Compose([v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()])(image)
    assert torch.equal(dataset[Drawn(3, 2, 9)].batch.codes, expected)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_mixture_is_of_two_images_of_one_task_by_its_share(name):
    dataset, plain = _dataset({"name": name, "alpha": 1.0}), Images()
    shares = []
    for place in range(60):
        position = place % 12
        item = dataset[Drawn(position, 0, place)]
        share, own = float(item.shares), plain[position]
        shares.append(share)
        same = [plain[i] for i in range(12) if plain[i].domains == own.domains and plain[i].labels == item.others]
        errors = []
        for other in same:
            if name == "mixup":
                mixed = share * own.codes.float() + (1 - share) * other.codes.float()
                errors.append(float((item.batch.codes.float() - mixed).abs().max()))
            else:
                changed = (item.batch.codes != own.codes).any(0)
                rest = torch.where(changed, other.codes, own.codes)
                errors.append(0.0 if torch.equal(rest, item.batch.codes) else 9.0)
                assert float(changed.float().mean()) <= 1 - share + 1e-6
        assert min(errors) <= 0.51
    assert 0 <= min(shares) <= max(shares) <= 1
    assert 0.3 < np.mean(shares) < 0.8  # a rectangle that the edge cuts leaves more


def test_one_of_several_mixtures_is_drawn_and_not_for_every_image():
    dataset = _dataset({"name": "mixup", "probability": 0.5}, {"name": "cutmix", "probability": 0.5})
    mixed = [float(dataset[Drawn(0, 0, place)].shares) < 1 for place in range(300)]
    assert 0.35 < np.mean(mixed) < 0.65


def test_the_unchanged_image_is_given_where_it_is_needed():
    dataset = _dataset("flip", "mixup", plain=True)
    for i in range(12):
        assert torch.equal(dataset[Drawn(i, 0, i)].plain, Images()[i].codes)


def test_ranks_together_see_what_one_process_sees():
    def seen(world):
        rows = []
        for rank in range(world):
            sampler = BatchSampler(Images.domain, 6, seed=3, rank=rank, world=world)
            rows.append(list(train_loader(_dataset("crop", "mixup"), DrawnSampler(sampler), 0)))
        return [
            {tuple(code.flatten().tolist()) for part in step for code in part.batch.codes}
            for step in zip(*rows, strict=True)
        ]

    assert seen(1) == seen(2) == seen(3)


def test_a_batch_has_types_that_losses_take():
    sampler = BatchSampler(Images.domain, 6, seed=3)
    (batch, _) = train_loader(_dataset("mixup"), DrawnSampler(sampler), 0)
    assert batch.shares.dtype == torch.float32
    assert batch.others.dtype == batch.batch.labels.dtype == torch.int64
    assert batch.plain.shape == (6, 0)


def test_a_position_within_an_epoch_goes_on_as_if_it_had_not_stopped():
    sampler = BatchSampler(Images.domain, 4, seed=3)
    loader = train_loader(_dataset("crop"), DrawnSampler(sampler), 0)
    sampler.set_position(2, 0)
    whole = [batch.batch.codes for batch in loader]
    sampler.set_position(2, 1)
    assert all(torch.equal(a.batch.codes, b) for a, b in zip(loader, whole[1:], strict=True))


def test_options_are_checked():
    with pytest.raises(UserError, match="least"):
        AUGMENTATIONS.make({"name": "crop", "least": 0})
    with pytest.raises(UserError, match="did you mean 'rand_augment'"):
        AUGMENTATIONS.make("randaugment")
