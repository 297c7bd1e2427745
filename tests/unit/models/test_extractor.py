"""The frozen extractor against hooks and means taken by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import metalora
from metalora.models.extractor import Extractor

MakeModel = Callable[..., metalora.MetaLoRAModel]
FEATURES = ["pooled", "stats", "both"]


def by_hand(network: nn.Module, layers: list[str], images: Tensor) -> Tensor:
    """Return means, then standard deviations, of each layer's channels, one image and channel at a time."""
    outputs: dict[str, Tensor] = {}
    for name in layers:
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.update({name: output})
        )
    with torch.no_grad():
        network(images)
    rows = []
    for i in range(len(images)):
        parts = []
        for name in layers:
            output = outputs[name]
            linear = isinstance(network.get_submodule(name), nn.Linear)
            channels = output[i].reshape(-1, output.shape[-1]).T if linear else output[i].flatten(1)
            parts += [torch.stack([c.mean() for c in channels])]
            parts += [torch.stack([(c - c.mean()).square().mean().sqrt() for c in channels])]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def test_pooled_features_are_the_backbones(net: nn.Module, images: Tensor) -> None:
    assert torch.equal(Extractor(copy.deepcopy(net))(images), net(images))


@pytest.mark.parametrize(
    ("layers", "first"),
    [
        (["0"], lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(980, 2))),
        (
            ["0", "2", "4", "6"],  # of 16 layers, the four of the first quarter
            lambda: nn.Sequential(
                *(m for _ in range(15) for m in (nn.Conv2d(3, 3, 1), nn.GELU())), nn.Flatten(), nn.Linear(768, 2)
            ),
        ),
        (
            ["1"],
            lambda: nn.Sequential(nn.Flatten(2), nn.Linear(256, 6), nn.Flatten(), nn.Linear(18, 2)),
        ),
    ],
)
def test_statistics_are_those_taken_by_hand(layers: list[str], first: Callable[[], nn.Module], images: Tensor) -> None:
    torch.manual_seed(0)
    network = first().eval()
    wanted, output = by_hand(copy.deepcopy(network), layers, images), network(images).detach()
    torch.testing.assert_close(Extractor(network, "stats")(images), wanted)
    torch.testing.assert_close(Extractor(network, "both")(images), torch.cat([wanted, output], 1))


def test_statistics_are_spread_over_the_first_quarter() -> None:
    network = torchvision.models.resnet50().eval()
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    images = torch.randn(2, 3, 32, 32)
    wanted = by_hand(copy.deepcopy(network), [layers[i] for i in (0, 4, 8, 12)], images)
    assert len(layers) == 54
    torch.testing.assert_close(Extractor(network, "stats")(images), wanted)


def test_stats_do_not_run_later_layers(images: Tensor) -> None:
    class Stop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("a later layer was run")

    network = nn.Sequential(nn.Conv2d(3, 4, 3), Stop(), nn.Conv2d(4, 4, 3))
    assert Extractor(network, "stats")(images).shape == (4, 8)
    with pytest.raises(AssertionError, match="later layer"):
        Extractor(network, "both")(images)


@pytest.mark.parametrize("features", FEATURES)
def test_features_depend_on_the_image_alone(features: str, fresh: MakeModel, net: nn.Module, images: Tensor) -> None:
    model = fresh("tr", extractor_features=features, modules_to_save=["norm"])
    extractor = model.extractor
    assert extractor is not None
    wanted = extractor(images)
    torch.testing.assert_close(torch.cat([extractor(image[None]) for image in images]), wanted)
    assert not torch.allclose(wanted[0], wanted[1])
    assert model.network.mapping is not None
    assert model.network.mapping.mean.shape == wanted.shape[1:]

    model.train()
    optimizer = torch.optim.SGD(model.trainable().values(), 0.1)
    for _ in range(2):
        model(images).square().sum().backward()
        optimizer.step()
    assert torch.equal(extractor(images), wanted)
    assert not extractor(images.requires_grad_()).requires_grad
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


def test_features_ignore_autocast(net: nn.Module, images: Tensor) -> None:
    extractor = Extractor(net, "both")
    with torch.autocast("cpu", torch.bfloat16):
        met = extractor(images)
        assert extractor(images.bfloat16()).dtype == torch.float32
    assert torch.equal(met, extractor(images))


def test_another_network_as_extractor(fresh: MakeModel, images: Tensor) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.BatchNorm1d(5), nn.Dropout())
    model = fresh("cp", extractor=other, extractor_features="pooled")
    assert model.extractor is not None
    assert torch.equal(model.extractor(images), copy.deepcopy(other).requires_grad_(False).eval()(images))
    assert other.training
    assert all(parameter.requires_grad for parameter in other.parameters())


class WithFeatures(nn.Linear):
    def features(self, x: Tensor) -> Tensor:
        return 2 * self(x)


class WithPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Flatten()
        self.features = nn.Linear(768, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self.before(x)).relu()


def test_a_features_method_is_called_but_a_part_of_that_name_is_not(images: Tensor) -> None:
    net: Any = WithFeatures(768, 4).requires_grad_(False)
    assert torch.equal(Extractor(net)(images.flatten(1)), 2 * net(images.flatten(1)))
    part = WithPart().requires_grad_(False)
    assert torch.equal(Extractor(part)(images), part(images))


def test_maps_are_pooled(images: Tensor) -> None:
    network = nn.Conv2d(3, 4, 3)
    torch.testing.assert_close(Extractor(network)(images), network(images).detach().flatten(2).mean(2))
