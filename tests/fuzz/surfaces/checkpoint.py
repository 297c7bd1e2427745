"""Checkpoints of a training, gone on with as ``metalora train --resume`` does."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch

from metalora.build import build_backbone, build_model, build_trainer
from metalora.config import from_dict
from metalora.data import load_table
from metalora.group import Group
from metalora.train.checkpoint import STATE, CheckpointFolder, whole
from metalora.train.reporter import Progress, Write
from metalora.train.trainer import Trainer
from tests.fuzz.mutators import change_file, change_value, replace_file, reseal
from tests.fuzz.surface import Expect, Mutation, Surface
from tests.fuzz.surfaces.data import write_tree
from tests.fuzz.surfaces.tensors import DTYPES

STEPS, LAST = 3, 2


class _Enough(BaseException):
    """Raised where a training has shown how it goes on."""


class _Reporter:
    """Keeps checkpoints; ends a training where it has gone a step from one.

    Args:
        folder: Where checkpoints are kept.
        last: The step of the last one; None if a training is not to write any.
    """

    def __init__(self, folder: Path, last: int | None) -> None:
        self.checkpoints = CheckpointFolder(folder, 100)
        self.last = last

    def progress(self, progress: Progress) -> None:
        """Do nothing."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """End what goes on from a checkpoint."""
        if self.last is None:
            raise _Enough

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Keep a checkpoint, up to the last."""
        assert write is not None
        if self.last is None:
            raise _Enough
        self.checkpoints.write(step, write)
        if step == self.last:
            raise _Enough


def make(seeds: Path) -> Callable[[Path], object]:
    """Train for some steps, with and without generated seeds."""
    tree = write_tree(seeds.parent / "tree", images=3)
    backbone = build_backbone("resnet20", "none", 28)
    configs = {format: _config(tree, format) for format in ("lora", "cp")}
    table = load_table(configs["lora"].data)

    def trainer(format: str, folder: Path, last: int | None) -> Trainer:
        config = configs[format]
        model = build_model(config, backbone, None, table.labels)
        return build_trainer(config, model, table, backbone.inputs, Group(torch.device("cpu")), _Reporter(folder, last))

    for format in configs:
        folder = seeds / format / format
        with suppress(_Enough):
            trainer(format, folder, LAST).fit(None)
        shutil.copytree(folder, seeds / f"{format}~" / format)
        shutil.rmtree(CheckpointFolder(seeds / f"{format}~" / format).all()[-1])

    def read(folder: Path) -> object:
        (run,) = folder.iterdir()
        going = trainer(run.name, run, None)
        last = CheckpointFolder(run, 100).latest()
        with suppress(_Enough):
            going.fit(last and whole(last, lambda text: None))
        return going.step, going.learner.state(), going.optimizer.state_dict(), going.schedule.state_dict()

    return read


def _config(tree: Path, format: str) -> Any:
    return from_dict(
        {
            "adapter": {"format": format, "rank": 1, "target_modules": ["net.stages.2.2.*"]},
            "data": {"data": str(tree), "batch_size": 4},
            "train": {"epochs": STEPS, "checkpoint_every": 1, "warmup_steps": 1},
            "evaluate": {"knn": [1], "validate_every": 0},
            "cluster": {"workers": 0},
            "backbone": {"weights": "none", "image_size": 28},
        }
    )


def mutate(random: Random, folder: Path) -> Mutation:
    """Change the last checkpoint: its bytes or, with the checksums made anew, what it holds."""
    (run,) = folder.iterdir()
    last = CheckpointFolder(run).all()[-1]
    kind = random.choice(("bytes", "bytes", "state", "state", "tensor", "number", "file"))
    file = random.choice(sorted(last.iterdir()))
    if kind == "bytes":
        return Mutation(change_file(random, file), Expect.EITHER)
    if kind == "file":
        return Mutation(replace_file(random, file), Expect.EITHER)
    state = torch.load(last / STATE, weights_only=True)
    if kind == "tensor":
        recipe, expect = _change_tensor(random, state)
    elif kind == "number":
        recipe, expect = _change_number(random, state)
    else:
        state, recipe = change_value(random, state, depths=(50, 70, 200))
        expect = Expect.ANY
    torch.save(state, last / STATE)
    reseal(last)
    return Mutation(f"{STATE}: {recipe}", expect)


def _change_tensor(random: Random, state: dict[str, Any]) -> tuple[str, Expect]:
    moments = state["optimizer"]["state"]
    holder = random.choice((state["model"], *(moments[key] for key in sorted(moments))))
    name = random.choice(sorted(name for name, held in holder.items() if isinstance(held, torch.Tensor)))
    tensor = holder[name].float()
    kinds = {
        "not finite": torch.full_like(tensor, random.choice((float("nan"), float("inf")))),
        "of another shape": tensor[None].repeat(2, *[1] * tensor.ndim),
        "of another type": tensor.to(random.choice([dtype for dtype in DTYPES if dtype != holder[name].dtype])),
        "huge by strides": torch.zeros(1).expand(10**6, 10**6),
        "sparse": tensor[None].to_sparse(),
        "on no device": tensor.to("meta"),
        "no tensor": random.choice((None, 1, "x", [1.0])),
        "missing": None,
    }
    kind = random.choice(sorted(kinds))
    holder[name] = kinds[kind]
    if kind == "missing":
        del holder[name]
    return f"{name}: {kind}", Expect.REFUSED


def _change_number(random: Random, state: dict[str, Any]) -> tuple[str, Expect]:
    def laughs() -> Any:
        value: Any = ["ha"]
        for _ in range(40):
            value = [value, value]
        return value

    refused, either = Expect.REFUSED, Expect.EITHER  # rates follow from settings and step, whatever stands there
    group = state["optimizer"]["param_groups"][0]
    changes: tuple[tuple[Any, str, Any, Expect], ...] = (
        (state, "step", random.choice((-5, 2**70, 1.5, "x", None, float("nan"), True, 10**6)), refused),
        (state["optimizer"], "param_groups", random.choice(([], None, [{}], [{"params": [0]}])), either),
        (group, "lr", random.choice((float("nan"), -1.0, "x", None)), either),
        (state, "schedule", random.choice((-5, 10**9, "x", None, laughs())), either),
        (state, "settings", random.choice((None, [], {"train.lr": "x"}, {1: 2}, laughs())), refused),
        (state["settings"], "train.lr", random.choice((1e-9, "x", None, laughs())), refused),
        (state, "data", random.choice((None, "x", 1, laughs())), refused),
        (state, "networks", random.choice((None, "x", 1, laughs())), refused),
        (state, "generators", random.choice((None, "x", [{}], [None], [{"python": [3, [], None]}], laughs())), refused),
    )
    holder, key, value, expect = random.choice(changes)
    holder[key] = value
    return f"{key} = {'a list' if isinstance(value, list) else str(value)[:40]}", expect


surface = Surface("checkpoint", make, mutate, checked=True, named=("{folder}", *("lora", "cp")), share=1.0)
