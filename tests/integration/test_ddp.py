"""Two ranks with batch b are one rank with batch 2 b, in float64: losses and weights.

However they compute: compiled, recomputing, by fused convolutions.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from metalora.build import build_model, build_networks, build_trainer
from metalora.config import from_dict
from metalora.data import load_table
from metalora.group import Group
from metalora.models.inputs import ImageInputs


class Recorder:
    """A reporter that keeps losses, and what the last checkpoint holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: list[float] = []

    def progress(self, progress: Any) -> None:
        pass

    def metrics(self, step: int, values: Any) -> None:
        self.losses += [values["train/loss"]] if "train/loss" in values else []

    def checkpoint(self, step: int, write: Any) -> None:
        if write is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(self.folder)


class Double(ImageInputs):
    """ImageInputs in float64."""

    def prepare(self, codes: torch.Tensor) -> torch.Tensor:
        return super().prepare(codes).double()


Settings = dict[str, Any]
OBJECTIVES: dict[str, Any] = {
    "classification": "classification",
    "episodic": {"name": "episodic", "classes": 3, "images": 2},
}


def train(
    rank: int, world: int, tree: str, folder: str, format: str, settings: Settings, saved: tuple[str, ...] = ()
) -> None:
    """Train in float64 as one rank of ``world``, with settings of section ``train``, and modules trained in full."""
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}.store", rank=rank, world_size=world)
    config = from_dict(
        {
            "data": {"data": tree, "batch_size": 12},
            "backbone": {"weights": "none"},
            "adapter": {"format": format, "rank": 2, "modules_to_save": saved},
            "train": {
                **{"epochs": 2, "checkpoint_every": 1, "warmup_steps": 2},
                **settings,
            },
            "evaluate": {"knn": [1], "validate_every": 0},
            "cluster": {"workers": 0},
        }
    )
    table = load_table(config.data)
    backbone, extractor = build_networks(config, print)
    model = build_model(config, backbone, extractor, table.labels).double()
    recorder = Recorder(Path(folder))
    preprocess = Double(**vars(backbone.inputs))
    build_trainer(config, model, table, preprocess, Group.current(torch.device("cpu")), recorder).fit()
    Path(folder).mkdir(parents=True, exist_ok=True)
    np.savez(Path(folder) / f"result{rank}.npz", losses=recorder.losses,
             **{name: tensor.numpy() for name, tensor in model.adapter_state().items()})  # fmt: skip
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
        # gloo's threads now and then abort a process that ends by the interpreter's own way ("terminate called
        # without an active exception"); all that is compared has been written by now
        os._exit(0)


@pytest.fixture(scope="module")
def one_rank(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Any]]:
    """Return what one rank comes to with a format and an objective, computed plainly; it is trained once."""

    @cache
    def result(format: str, objective: str) -> dict[str, Any]:
        return _result(
            tree, tmp_path_factory.mktemp("one"), 1, format, {"objective": OBJECTIVES[objective], "kernel": "plain"}
        )

    return result


compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on CPUs")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "format", "settings"),
    [
        (2, "tr", {}),
        (1, "tr", {"accumulate": 3}),
        (2, "tr", {"accumulate": 3}),
        (2, "tr", {"objective": OBJECTIVES["episodic"]}),
        (2, "tr", {"kernel": "fused"}),
        pytest.param(2, "lora", {"compile": True}, marks=compiler),
        pytest.param(2, "multi_lora", {"compile": True, "kernel": "fused"}, marks=compiler),
        pytest.param(1, "cp", {"compile": True, "activation_checkpointing": True}, marks=compiler),
        pytest.param(2, "tr", {"compile": True, "kernel": "fused"}, marks=compiler),
    ],
    ids=str,
)
def test_how_a_training_is_computed_does_not_change_it(
    one_rank: Callable[[str, str], dict[str, Any]],
    tree: Path,
    tmp_path: Path,
    world: int,
    format: str,
    settings: Settings,
) -> None:
    one = one_rank(format, "episodic" if "objective" in settings else "classification")
    other = _result(tree, tmp_path, world, format, settings)
    assert len(one["losses"]) >= 8
    assert one.keys() == other.keys()
    for name, value in one.items():
        # the condition is kept in float32, and Adam divides by small second moments
        np.testing.assert_allclose(other[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_ranks_agree_on_what_trained_batch_norms_have_measured(tree: Path, tmp_path: Path) -> None:
    first = _result(tree, tmp_path, 2, "lora", {}, ("net.stages.2.2.bn2",))
    other = dict(np.load(tmp_path / "result1.npz"))
    measured = [name for name in first if name.endswith(("running_mean", "running_var"))]
    assert len(measured) == 2
    for name in first.keys() - {"losses"}:
        np.testing.assert_array_equal(first[name], other[name], err_msg=name)


def _result(
    tree: Path, folder: Path, world: int, format: str, settings: Settings, saved: tuple[str, ...] = ()
) -> dict[str, Any]:
    arguments = (world, str(tree), str(folder), format, settings, saved)
    if world == 1:
        train(0, *arguments)
    else:
        mp.spawn(train, args=arguments, nprocs=world)
    return dict(np.load(folder / "result0.npz"))
