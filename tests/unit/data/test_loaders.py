import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

from metalora.data import BatchSampler, SampleDataset, decode, evaluation_loader, train_loader


def encode(raw, name):
    return pil_to_tensor(decode(raw, name))


@pytest.fixture(scope="module")
def train_set(embedded):
    rows = embedded.rows("train")[::10]
    return SampleDataset(embedded, rows, encode), embedded.domain[rows]


def run(loader):
    return [torch.cat(column) for column in zip(*loader, strict=True)]


def test_an_item_is_the_image_of_its_table_row(embedded):
    rows = embedded.rows("val")[[3, 1, 700]]
    image, label, domain, row = SampleDataset(embedded, rows, encode)[2]
    assert (image.shape, image.dtype) == ((3, 28, 28), torch.uint8)
    assert (label, domain, row) == (embedded.label[rows[2]], embedded.domain[rows[2]], rows[2])
    assert all(type(number) is int for number in (label, domain, row))


def test_a_dataset_pickles_without_images(embedded):
    rows = embedded.rows("test")[:5]
    dataset = SampleDataset(embedded, rows, encode)
    before = dataset[4]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2000
    after = pickle.loads(pickled)[4]
    assert torch.equal(after[0], before[0])
    assert after[1:] == before[1:]


def test_batches_do_not_depend_on_loader_workers_nor_on_torchs_generator(train_set):
    dataset, domain = train_set
    sampler = BatchSampler(domain, 60, seed=3)
    sampler.set_position(1, 2)
    state = torch.get_rng_state()
    here, there = (run(train_loader(dataset, sampler, workers)) for workers in (0, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert len(here[0]) == 3 * 60
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one, other)


def test_a_loader_follows_its_samplers_position(train_set):
    dataset, domain = train_set
    sampler = BatchSampler(domain, 100, seed=3)
    loader = train_loader(dataset, sampler, 0)
    epochs = []
    for epoch in range(2):
        sampler.set_position(epoch, 0)
        epochs.append(run(loader)[3].tolist())
    sampler.set_position(1, 1)
    assert run(loader)[3].tolist() == epochs[1][100:]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("count", "world"), [(11, 1), (11, 2), (11, 4), (3, 5)])
def test_evaluation_shares_are_contiguous_and_complete(embedded, count, world):
    rows = embedded.rows("val")[:count]
    dataset = SampleDataset(embedded, rows, encode)
    share = -(-count // world)
    seen = []
    for rank in range(world):
        batches = [batch[3].tolist() for batch in evaluation_loader(dataset, 2, 0, rank, world)]
        mine = [row for batch in batches for row in batch]
        assert mine == rows[rank * share : (rank + 1) * share].tolist()
        seen += mine
    assert seen == rows.tolist()


def test_evaluation_keeps_the_last_small_batch(embedded):
    dataset = SampleDataset(embedded, np.arange(5), encode)
    assert [len(batch[3]) for batch in evaluation_loader(dataset, 2, 0)] == [2, 2, 1]
