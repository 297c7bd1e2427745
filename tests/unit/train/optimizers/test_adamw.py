"""Groups of parameters, their rates and their decay."""

import torch
from torch import nn

from metalora.models.model import Trainable
from metalora.train.optimizers import OPTIMIZERS


def test_groups_have_their_rates_and_decay():
    named = {
        "layers.a.down.weight": nn.Parameter(torch.zeros(2, 3)),
        "layers.a.gain": nn.Parameter(torch.zeros(2)),
        "mapping.trunk.0.weight": nn.Parameter(torch.zeros(2, 3)),
        "mapping.trunk.0.bias": nn.Parameter(torch.zeros(2)),
        "head.weight": nn.Parameter(torch.zeros(2, 3)),
    }
    parts = {"layers": "adapter", "mapping": "mapping", "head": "head"}
    trained = [Trainable(name, parameter, parts[name.split(".")[0]]) for name, parameter in named.items()]
    adamw = OPTIMIZERS.make({"name": "adamw", "weight_decay": 0.5})
    optimizer = adamw.build(trained, lr=1.0, scales={"mapping": 0.1})
    of = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert {name: of[id(parameter)] for name, parameter in named.items()} == {
        "layers.a.down.weight": (1.0, 0.5),
        "layers.a.gain": (1.0, 0.0),
        "mapping.trunk.0.weight": (0.1, 0.5),
        "mapping.trunk.0.bias": (0.1, 0.0),
        "head.weight": (1.0, 0.5),
    }
