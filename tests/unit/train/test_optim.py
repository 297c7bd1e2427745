import pytest
import torch
from torch import nn

from metalora.train.optim import build_optimizer, warmup_cosine


def test_groups_have_their_rates_and_decay():
    named = {
        "layers.a.down.weight": nn.Parameter(torch.zeros(2, 3)),
        "layers.a.gain": nn.Parameter(torch.zeros(2)),
        "mapping.trunk.0.weight": nn.Parameter(torch.zeros(2, 3)),
        "mapping.trunk.0.bias": nn.Parameter(torch.zeros(2)),
        "head.weight": nn.Parameter(torch.zeros(2, 3)),
    }
    optimizer = build_optimizer(named.items(), lr=1.0, mapping_lr_scale=0.1, weight_decay=0.5)
    of = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert {name: of[id(parameter)] for name, parameter in named.items()} == {
        "layers.a.down.weight": (1.0, 0.5),
        "layers.a.gain": (1.0, 0.0),
        "mapping.trunk.0.weight": (0.1, 0.5),
        "mapping.trunk.0.bias": (0.1, 0.0),
        "head.weight": (1.0, 0.5),
    }


def rates(warmup, total):
    optimizer = build_optimizer([("head.weight", nn.Parameter(torch.zeros(1, 1)))], 2.0, 1.0, 0.0)
    schedule = warmup_cosine(optimizer, warmup, total)
    seen = []
    for _ in range(total):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen, schedule.get_last_lr()[0]


def test_warmup_is_linear_and_the_cosine_torchs():
    seen, end = rates(4, 20)
    assert seen[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    oracle = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=2.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(oracle, 16)
    for rate in seen[4:]:
        assert rate == pytest.approx(cosine.get_last_lr()[0])
        oracle.step()
        cosine.step()
    assert end == pytest.approx(0.0)


def test_a_short_run_still_reaches_its_rate():
    seen, _ = rates(100, 6)
    assert max(seen) == pytest.approx(2.0)
