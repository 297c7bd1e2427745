"""Begin with the adapter of another training."""

import dataclasses

import pytest
import torch

import metalora
from metalora.build import build_model
from metalora.config import from_dict
from metalora.errors import UserError
from metalora.models.initial import read_initial

ADAPTER = {"format": "tr", "rank": 2, "target_modules": ["*.stages.0.*"]}
LABELS = ("bird", "cat", "dog")


def _config(adapter=ADAPTER, mapping=None, random_seed=0):
    return from_dict({"adapter": adapter, "mapping": mapping or {}, "train": {"random_seed": random_seed}})


@pytest.fixture(scope="module")
def backbone():
    return metalora.build_backbone("resnet20", "none", 28)


@pytest.fixture(scope="module")
def trained(backbone, tmp_path_factory):
    model = build_model(_config(), backbone, None, LABELS)
    with torch.no_grad():
        for number, tensor in enumerate(model.adapter_state().values()):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)).abs() * 0.1 + 0.01)
    path = metalora.save(model, tmp_path_factory.mktemp("run") / "adapter")
    return model, read_initial(path)


def test_a_model_begins_as_the_other_one_ended(backbone, trained):
    model, initial = trained
    again = build_model(_config(random_seed=7), backbone, None, LABELS, initial)
    images = torch.rand(4, 3, 28, 28)
    model.eval(), again.eval()
    assert torch.equal(model.logits(images), again.logits(images))


def test_rows_of_the_classifier_go_by_their_labels(backbone, trained):
    model, initial = trained
    labels = ("ant", "dog", "bird")
    fresh = build_model(_config(random_seed=7), backbone, None, labels)
    again = build_model(_config(random_seed=7), backbone, None, labels, initial)
    for name in ("weight", "bias"):
        old, new, made = (getattr(one.head, name) for one in (model, again, fresh))
        assert torch.equal(new[1], old[2])
        assert torch.equal(new[2], old[0])
        assert torch.equal(new[0], made[0])
    assert initial.known(labels) == ["dog", "bird"]


@pytest.mark.parametrize(
    ("adapter", "mapping", "message"),
    [
        ({**ADAPTER, "rank": 3}, {}, "its layers was 6 layers of rank 2, here it is 6 layers of rank 3"),
        ({**ADAPTER, "format": "cp", "rank": 2}, {}, "its format was tr, here it is cp"),
        (ADAPTER, {"mapping_depth": 3}, "its mapping_depth was 2, here it is 3"),
        (ADAPTER, {"seed_scope": "shared"}, "its seed_scope was 'layer', here it is 'shared'"),
        ({**ADAPTER, "target_modules": ["*.stages.1.*"]}, {}, "its layers was"),
    ],
)
def test_another_structure_is_refused_by_name(backbone, trained, adapter, mapping, message):
    with pytest.raises(UserError, match=message):
        build_model(_config(adapter, mapping), backbone, None, LABELS, trained[1])


def test_another_backbone_is_refused(trained):
    torch.manual_seed(5)
    other = metalora.build_backbone("resnet20", "none", 28)
    with pytest.raises(UserError, match="its backbone was resnet20, here it is resnet20, with other weights"):
        build_model(_config(), other, None, LABELS, trained[1])


def test_a_classifier_that_does_not_fit_its_labels_is_refused(backbone, trained):
    initial = trained[1]
    short = dataclasses.replace(initial, state={**initial.state, "head.bias": torch.zeros(2)})
    with pytest.raises(UserError, match=r"'head.bias' does not have one row for each of its 3 labels"):
        build_model(_config(), backbone, None, LABELS, short)
