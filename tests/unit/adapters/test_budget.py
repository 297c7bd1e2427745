"""Ranks picked for a parameter budget."""

from typing import Any

import pytest
import timm
import torchvision
from torch import nn

import metalora
from metalora.adapters.formats import FORMATS
from metalora.errors import UserError

formats = pytest.mark.parametrize("format", sorted(FORMATS))


def resnet() -> nn.Module:
    return torchvision.models.resnet18().eval()


def mixer() -> nn.Module:
    return timm.models.mlp_mixer.MlpMixer(
        img_size=32, patch_size=8, num_blocks=4, embed_dim=64, mlp_ratio=(0.5, 4.0), num_classes=10
    ).eval()


NETWORKS = {"resnet18": (resnet, (200_000, 1_000_000)), "mixer": (mixer, (20_000, 60_000))}


def budgeted(network: nn.Module, format: str, budget: int, **settings: Any) -> metalora.MetaLoRAModel:
    return metalora.adapt(network, format, parameter_budget=budget, input_size=(3, 32, 32), mapping_width=8, **settings)


@formats
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_budget_is_kept_and_used(name: str, size: int, format: str) -> None:
    make, budgets = NETWORKS[name]
    budget = budgets[size]
    model = budgeted(make(), format, budget)
    met = model.count_parameters()[0]
    assert 0.97 * budget < met <= budget
    assert met == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("scope", ["layer", "shared"])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_mapping_net_is_part_of_it(scope: str, depth: int) -> None:
    model = budgeted(mixer(), "tr", 30_000, seed_scope=scope, mapping_depth=depth)
    mapping = model.network.mapping
    assert mapping is not None
    assert 29_100 < model.count_parameters()[0] <= 30_000
    layers = sum(p.numel() for layer in model.layers.values() for _, p in layer.adapter_parameters())
    assert model.count_parameters()[0] - layers == sum(p.numel() for p in mapping.parameters()) > 0


def test_the_head_is_no_part_of_it() -> None:
    plain, headed = budgeted(mixer(), "cp", 30_000), budgeted(mixer(), "cp", 30_000, labels="abc")
    assert headed.count_parameters()[0] - plain.count_parameters()[0] == 3 * (10 + 1)


@formats
def test_a_budget_that_is_too_small(format: str) -> None:
    with pytest.raises(UserError, match=r"parameter_budget 100 is too small: rank 1 takes \d+"):
        budgeted(mixer(), format, 100)


def test_a_budget_above_all_ranks_takes_the_largest() -> None:
    model = budgeted(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.Linear(4, 6), nn.Linear(6, 2)), "lora", 10**9)
    assert {name: layer.rank for name, layer in model.layers.items()} == {"2": 4}


def test_a_budget_excludes_rank_patterns() -> None:
    with pytest.raises(UserError, match="leave out rank_pattern"):
        budgeted(mixer(), "lora", 30_000, rank_pattern={"fc1": 2})


def test_a_budget_goes_with_alpha_patterns() -> None:
    model = budgeted(mixer(), "lora", 30_000, alpha_pattern={"fc1": 0.5})
    for name, layer in model.layers.items():
        assert layer.alpha == (0.5 if name.endswith("fc1") else layer.rank)
