"""The mapping net and the layout of the seeds."""

import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from metalora.adapters.formats import FORMATS, Shape
from metalora.models.mapping import MappingNet, mapping_size, mean_by_task, seed_layout

SHAPES = {name: Shape(out=8, fan=8, groups=1, rank=rank) for name, rank in (("a", 2), ("b", 3), ("c", 2))}


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 8])
def test_depth_width_and_size(depth: int, width: int) -> None:
    net = MappingNet(5, torch.ones(7), depth, width)
    shapes = [tuple(m.weight.shape) for m in net.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(width, 5)] + [(width, width)] * (depth - 1) + [(7, width)]
    assert sum(isinstance(m, nn.GELU) for m in net.modules()) == depth
    assert mapping_size(5, 7, depth, width) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("format", "scope", "slices", "size"),
    [
        ("cp", "layer", [(0, 2), (2, 5), (5, 7)], 7),
        ("cp", "shared", [(0, 2), (2, 5), (0, 2)], 5),
        ("tr", "layer", [(0, 4), (4, 13), (13, 17)], 17),
        ("tr", "shared", [(0, 4), (4, 13), (0, 4)], 13),
        ("lora", "layer", [(0, 0), (0, 0), (0, 0)], 0),
        ("multi_lora", "shared", [(0, 0), (0, 0), (0, 0)], 0),
    ],
)
def test_layout(format: str, scope: str, slices: list[tuple[int, int]], size: int) -> None:
    kind = FORMATS.make(format)
    met, identity = seed_layout(kind, SHAPES, scope)
    assert {name: (s.start, s.stop) for name, s in met.items()} == dict(zip(SHAPES, slices, strict=True))
    assert identity.shape == (size,)
    if size:
        for name, shape in SHAPES.items():
            assert torch.equal(identity[met[name]], kind.identity(shape))


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS.get(name).seed == "generated"])
def test_fresh_net_gives_identity_seeds(format: str) -> None:
    identity = seed_layout(FORMATS.make(format), SHAPES, "layer")[1]
    net = MappingNet(5, identity, 2, 8)
    net.standardize(torch.randn(9, 5))
    assert torch.equal(net(1e3 * torch.randn(4, 5)), identity.expand(4, -1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (net(torch.ones(1, 5)) - 2).square().sum().backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())
    assert not torch.allclose(net(torch.zeros(1, 5)), net(torch.ones(1, 5)))


@pytest.mark.parametrize("offset", [0.0, 1e2])
def test_standardize_is_scikit_learns(offset: float) -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 6) + offset
    features[:, 3] = offset + 7.0
    net = MappingNet(6, torch.ones(2), 1, 4)
    net.standardize(features)
    wanted = StandardScaler().fit(features.double().numpy())
    torch.testing.assert_close(net.mean, torch.from_numpy(wanted.mean_).float())
    torch.testing.assert_close(net.spread, torch.from_numpy(wanted.scale_).float())
    assert net.spread[3] == 1

    seen: list[Tensor] = []
    net.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(features)
    torch.testing.assert_close(
        seen[0], torch.from_numpy(wanted.transform(features.double().numpy())).float(), rtol=1e-3, atol=2e-2
    )


def test_statistics_are_state_but_not_trained() -> None:
    net = MappingNet(3, torch.ones(2), 1, 4)
    assert {"mean", "spread"} <= net.state_dict().keys()
    assert not {"mean", "spread"} & dict(net.named_parameters()).keys()


def test_images_of_a_task_get_their_mean_seed() -> None:
    seeds, task = torch.randn(5, 3), torch.tensor([7, 2, 7, 2, 9])
    mean = mean_by_task(seeds, task)
    for row in range(5):
        assert torch.allclose(mean[row], seeds[task == task[row]].mean(0))
