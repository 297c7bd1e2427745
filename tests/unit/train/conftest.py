from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalora.build import build_backbone, build_model, build_trainer
from metalora.config import from_dict
from metalora.data import load_table
from metalora.group import Group
from metalora.train.reporter import Progress, Write
from metalora.train.trainer import Trainer


class Listener:
    """A reporter that keeps what it hears, and the last checkpoint in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.heard: dict[str, float] = {}

    def progress(self, progress: Progress) -> None:
        pass

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.heard |= values

    def checkpoint(self, step: int, write: Write | None) -> None:
        assert write is not None
        folder = self.folder / f"checkpoint_{step:08d}"
        folder.mkdir(exist_ok=True)
        write(folder)


@pytest.fixture
def listener() -> type[Listener]:
    return Listener


@pytest.fixture
def make_trainer(tree: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """Make a short training on the small tree; keywords are settings by their name, ``folder`` the listener's."""
    network = build_backbone("resnet20", "none", 28)

    def make(folder: Path = tmp_path, **sections: dict[str, Any]) -> Trainer:
        small: dict[str, dict[str, Any]] = {
            "adapter": {"format": "tr", "rank": 2},
            "data": {"data": str(tree), "batch_size": 12},
            "train": {"epochs": 2, "lr": 3e-3, "warmup_steps": 2},
            "evaluate": {"knn": (1, 3), "evaluation_batch_size": 16},
            "cluster": {"workers": 0},
        }
        config = from_dict({name: small.get(name, {}) | sections.get(name, {}) for name in {*small, *sections}})
        table = load_table(config.data)
        model = build_model(config, network, None, table.labels)
        return build_trainer(config, model, table, network.inputs, Group(torch.device("cpu")), Listener(folder))

    return make
