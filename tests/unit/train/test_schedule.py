import pytest
import torch
from torch import nn

from metalora.train.schedule import warmup_cosine


def rates(warmup, total):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1, 1))], lr=2.0)
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
