"""Every point where methods plug in takes a member that touches no other file: each of these is thrown away at once."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metalora
from metalora.adapters.factors import Factors
from metalora.adapters.formats import FORMATS
from metalora.adapters.formats.base import Diagonal
from metalora.adapters.initializers import INITIALIZERS, Initializer
from metalora.build import build_backbone, build_model, build_trainer
from metalora.config import from_dict, to_dict
from metalora.data import load_table
from metalora.group import Group
from metalora.methods import check_methods, find
from metalora.models.model import Trainable
from metalora.registry import KINDS, Field, Registry
from metalora.train.callbacks import CALLBACKS, Callback
from metalora.train.learner import Seen
from metalora.train.trainer import Trainer

CPU = Group(torch.device("cpu"))


@pytest.fixture(autouse=True)
def thrown_away() -> Iterator[None]:
    before = {registry: dict(registry._entries) for registry in KINDS.values()}
    yield
    for registry, entries in before.items():
        registry._entries = entries


@pytest.fixture
def make(make_trainer: Callable[..., Trainer], tmp_path: Path) -> Callable[..., Trainer]:
    """Make a short training of LoRA; keywords are settings by section, ``folder`` the listener's."""

    def make_one(folder: str = "run", **sections: dict[str, Any]) -> Trainer:
        adapter = {"format": "lora"} | sections.pop("adapter", {})
        return make_trainer(tmp_path / folder, adapter=adapter, **sections)

    return make_one


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {one.name: one.parameter.detach().clone() for one in trainer.learner.trainable()}


# --- a format with a parameter of its own and a gate after Up


class GatedFactors(Factors):
    def __init__(self, base: Any, channels: int, outputs: int, start: float) -> None:
        super().__init__(base, channels)
        self.gate = nn.Parameter(torch.full((outputs,), start))


def register_gated() -> None:
    @FORMATS.register("gated")
    class Gated(Diagonal):
        """LoRA with a learned gate on each output: dW = diag(g) B A."""

        seed = "none"
        start: float = Field(default=1.0, gt=0, description="the gates' first value")

        def factors(self, base, shape):
            return GatedFactors(base, self.channels(shape), shape.out, self.start)

        def size(self, shape):
            return super().size(shape) + shape.out

        def finish(self, update, c, channel_dim, factors):
            gate = factors.gate
            return update * (gate if channel_dim == -1 else gate.view(-1, *(1,) * (update.dim() - 2)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )  # fmt: skip


def test_a_format_with_a_parameter_of_its_own_and_a_gate_after_up(net, tmp_path):
    register_gated()
    images = torch.randn(4, 3, 9, 9)
    chosen = {"name": "gated", "start": 0.5}
    settings: dict[str, Any] = {"target_modules": ["0", "1", "4"], "input_size": (3, 9, 9)}
    model = metalora.adapt(net, chosen, rank=2, **settings).eval()
    assert torch.equal(model(images), net(images))
    trained = model.trainable()
    assert trained["layers.1.gate"].tolist() == [0.5] * 4  # one for each output of a group
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    adapted = model(images)
    grads = torch.autograd.grad(adapted.square().sum(), list(trained.values()))
    assert all(grad.abs().sum() > 0 for grad in grads)
    size = sum(p.numel() for p in trained.values())
    shapes = model.spec.shapes(net)
    assert size == sum(map(model.spec.make_format().size, shapes.values()))
    metalora.save(model, tmp_path / "adapter")
    assert torch.equal(metalora.load(net, tmp_path / "adapter")(images), adapted)
    assert '"start": 0.5' in (tmp_path / "adapter/adapter.json").read_text()
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(images), adapted)


def test_a_format_that_the_kernels_do_not_fit_is_left_plain(make):
    register_gated()
    with pytest.raises(metalora.UserError, match="kernel fused: this network has nothing that can be fused"):
        make(adapter={"format": "gated"}, train={"kernel": "fused"})


# --- an initialiser that needs gradients


def test_an_initializer_that_needs_gradients(make):
    @INITIALIZERS.register("steepest")
    class Steepest(Initializer):
        """Down from the rows of the gradient, scaled: its first ones, as many as there is room for."""

        needs = "gradients"
        batches: int = Field(default=2, ge=1, description="batches that are measured")
        scale: float = 3.0

        def fill(self, layer, facts, draw):
            down, _ = layer.factors.pair()
            down.copy_(self.scale * facts.gradient[: len(down)])

    trainer = make(adapter={"initializer": {"name": "steepest", "batches": 2, "scale": 5.0}})
    learner = trainer.learner
    weights = {name: layer.base.weight.clone() for name, layer in learner.model.layers.items()}
    trainer.learner.prepare(begins=True)
    # The oracle: the plain backbone and head, the same images, torch's own backward.
    backbone = build_backbone("resnet20", "none", 28)
    backbone.load_state_dict(_plain_state(learner.model))
    named = {name: backbone.get_submodule(name).weight.requires_grad_(True) for name in learner.model.layers}
    batches = list(itertools.islice(learner.batches(0, 0), 2))
    for batch in batches:
        scores = learner.model.head(backbone(learner.feed.prepare(batch.codes)))
        (F.cross_entropy(scores, batch.labels) / 2).backward()
    for name, layer in learner.model.layers.items():
        expected = 5.0 * named[name].grad[: len(layer.factors.down.weight)]
        torch.testing.assert_close(layer.factors.down.weight, expected, rtol=1e-4, atol=1e-7)
        assert torch.equal(layer.base.weight, weights[name])
        assert not layer.base.weight.requires_grad
    assert learner.model.layers.keys() == named.keys()


def _plain_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the frozen backbone's state, under the names that it has without adapters."""
    state = model.network.backbone.state_dict()
    return {name.replace(".base.", "."): tensor for name, tensor in state.items() if ".factors." not in name}


# --- a callback with a state in the checkpoint


def test_a_callback_with_a_state_in_the_checkpoint(make, tmp_path):
    @CALLBACKS.register("momentum_of_norms")
    class MomentumOfNorms(Callback):
        """Scale each step's gradients by a running mean of their norms, and add a penalty."""

        decay: float = Field(default=0.9, ge=0, lt=1, description="of the mean")

        def attach(self, learner, plan):
            super().attach(learner, plan)
            self.mean = torch.ones(())
            self.begun = 0

        def begin(self, index):
            self.begun += 1

        def penalty(self):
            return 1e-3 * sum(one.parameter.square().sum() for one in self.learner.trainable())

        def gradients(self, step):
            norms = [one.parameter.grad.norm() for one in self.learner.trainable()]
            self.mean = self.decay * self.mean + (1 - self.decay) * torch.stack(norms).norm()
            for one in self.learner.trainable():
                one.parameter.grad /= 1 + self.mean

        def metrics(self):
            return {"mean": float(self.mean)}

        def state_dict(self):
            return {"mean": self.mean}

        def load_state_dict(self, state):
            self.mean = state["mean"]

    chosen = {"callbacks": [{"name": "momentum_of_norms", "decay": 0.5}]}
    whole = make("whole", train=chosen)
    whole.fit()
    assert whole.callbacks.members[0].begun == whole.total_steps
    assert whole.reporter.heard["callbacks/momentum_of_norms/mean"] == float(whole.callbacks.members[0].mean)
    resumed = make("resumed", train=chosen)
    resumed.fit(tmp_path / "whole" / f"checkpoint_{whole.steps_per_epoch:08d}")
    plain = make("plain")
    plain.fit()
    for name, tensor in state_of(whole).items():
        assert torch.equal(state_of(resumed)[name], tensor), name
    assert not all(torch.equal(state_of(plain)[name], tensor) for name, tensor in state_of(whole).items())
    other = {"callbacks": [{"name": "momentum_of_norms", "decay": 0.6}]}
    with pytest.raises(metalora.UserError, match=r"cannot be resumed, its settings changed: train\.callbacks was"):
        make("other", train=other).fit(tmp_path / "whole" / f"checkpoint_{whole.steps_per_epoch:08d}")


# --- a learner that is no MetaLoRA model


class Line:
    """Fits a line to points: the learner that a generator of adapters, say, would be."""

    tasks, task_names, one_task = (0,), ("points",), True
    steps_per_epoch = 5

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(5, 8, 3, generator=generator)
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1
        torch.manual_seed(2)
        self.net = nn.Linear(3, 1)
        self.speedups: dict[str, float] = {}

    def module(self):
        return self.net

    def trainable(self):
        return [Trainable(name, parameter, "line") for name, parameter in self.net.named_parameters()]

    def scales(self):
        return {"line": 2.0}

    def prepare(self, begins):
        pass

    def batches(self, epoch, step):
        return iter(list(zip(self.x, self.y, strict=True))[step:])

    def losses(self, module, batch):
        x, y = batch
        return Seen((module(x)[:, 0] - y).square(), torch.zeros(len(x), dtype=torch.long))

    def agree(self):
        pass

    def validate(self):
        return {"val/loss": (self.net(self.x)[..., 0] - self.y).square().mean().item()}

    def test(self):
        values = {"test/loss": self.validate()["val/loss"]}
        return values, lambda folder: (folder / "done").write_text("yes")

    def read(self, folder):
        return torch.load(folder / "state.pt", weights_only=True)

    def finished(self, folder, state):
        return (folder / "done").is_file()

    def state(self):
        return {"line": self.net.state_dict()}

    def load_state(self, state):
        self.net.load_state_dict(state["line"])


def test_a_learner_that_is_no_metalora_model(listener, tmp_path):
    settings = {"train": {"epochs": 6, "lr": 0.05, "warmup_steps": 0}, "data": {"batch_size": 8}}
    config = from_dict(settings)
    whole = Trainer(config, Line(), CPU, listener(tmp_path / "whole"))
    whole.fit()
    # The oracle: the loop as anybody would write it with torch alone.
    line = Line()
    optimizer = torch.optim.AdamW(
        [{"params": [line.net.weight], "weight_decay": 0.01}, {"params": [line.net.bias], "weight_decay": 0.0}], lr=0.1
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for _ in range(6):
        for x, y in line.batches(0, 0):
            optimizer.zero_grad()
            (line.net(x)[:, 0] - y).square().mean().backward()
            nn.utils.clip_grad_norm_(line.net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(whole.learner.net.weight, line.net.weight)
    torch.testing.assert_close(whole.learner.net.bias, line.net.bias)
    assert whole.reporter.heard["test/loss"] < 0.5
    resumed = Trainer(config, Line(), CPU, listener(tmp_path / "resumed"))
    resumed.fit(tmp_path / "whole/checkpoint_00000015")
    assert torch.equal(resumed.learner.net.weight, whole.learner.net.weight)
    assert (tmp_path / "whole/checkpoint_00000030/done").is_file()


# --- inputs that are token ids


class Tokens:
    """Bytes of a text as token ids, cut or padded to a length."""

    def encode(self, raw, name, most):
        ids = list(raw[:6]) + [0] * max(0, 6 - len(raw))
        return torch.tensor(ids, dtype=torch.long)

    def prepare(self, codes):
        return codes

    def example(self, count):
        return torch.arange(6 * count).view(count, 6) % 256


class Reader(nn.Module):
    """Embeds tokens and reads them by two layers: (B, 6) -> (B, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 16)
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 16)
        self.inputs = Tokens()

    def forward(self, ids):
        return self.second(torch.tanh(self.first(self.embed(ids)))).mean(1)


class Texts:
    """A store of words: of label 0 begin with a to m, of label 1 with n to z."""

    def __init__(self, words: list[bytes]) -> None:
        self.words = words

    def read(self, row: int) -> bytes:
        return self.words[row]

    def name(self, row: int) -> str:
        return f"word {row}"


@pytest.mark.parametrize("format", ["lora", "cp"])
@pytest.mark.parametrize("keep_images", [0.0, 1.0])
def test_inputs_that_are_token_ids(format, keep_images, listener, tmp_path, tree):
    generator = np.random.default_rng(0)
    letters = np.repeat(generator.integers(97, 123, (96, 1), dtype=np.uint8), 6, axis=1)
    label = (letters[:, 0] >= 110).astype(np.int64)
    split = np.repeat(np.array([0, 1, 2], dtype=np.int8), 32)
    like = load_table(from_dict({"data": {"data": str(tree)}}).data)
    table = replace(
        like, store=Texts([bytes(word) for word in letters]), store_rows=np.arange(96), label=label,
        domain=np.arange(96) % 2, split=split, id=np.arange(96).astype(str).astype(object), fingerprint="words",
    )  # fmt: skip
    settings = {
        "adapter": {"format": format, "rank": 4, "target_modules": ["first", "second"]},
        "mapping": {"extractor_features": "pooled"},
        "data": {"batch_size": 16, "keep_images": keep_images},
        "train": {"epochs": 30, "lr": 0.02, "warmup_steps": 2},
        "evaluate": {"knn": (1,), "validate_every": 30},
    }
    config = from_dict(settings)
    torch.manual_seed(0)
    reader = Reader()
    model = build_model(config, reader, None, table.labels)
    trainer = build_trainer(config, model, table, reader.inputs, CPU, listener(tmp_path))
    trainer.fit()
    assert trainer.reporter.heard["train/loss"] < 0.1
    assert trainer.reporter.heard["val/accuracy"] > 0.7


# --- the README's


def test_the_readmes_method_is_one(net):
    readme = (Path(__file__).parents[3] / "metalora" / "adapters" / "README.md").read_text(encoding="utf-8")
    block = readme.partition("```python")[2].partition("```")[0]
    exec(block, {})
    model = metalora.adapt(net, {"name": "multi_cp", "branches": 3}, 2, target_modules=["0", "4"], input_size=(3, 9, 9))
    model.eval()
    images = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    assert model.layers["0"].factors.down.out_channels == 6
    one = model(images[:1])
    merged = model.merge_and_unload(model.seed(images[:1]).mean(0))
    torch.testing.assert_close(merged(images[:1]), one)


# --- and all of them are found


def test_what_is_registered_is_checked_described_and_recorded_like_the_rest():
    register_gated()
    config = from_dict({"adapter": {"format": {"name": "gated", "start": 2}}})
    check_methods(config)
    assert to_dict(config)["adapter"]["format"] == {"name": "gated", "start": 2}
    (described,) = find("gated")
    assert (described.kind, described.options) == (
        "adapter format",
        (("start", "float", 1.0, "the gates' first value"),),
    )
    for choice, message in (
        ({"name": "gated", "start": 0}, "adapter format 'gated': start = 0: input should be greater than 0"),
        ("gate", "unknown adapter format 'gate', did you mean 'gated'"),
        ({"name": "lora", "start": 1}, "adapter format 'lora' has no option 'start'"),
    ):
        with pytest.raises(metalora.UserError, match=message):
            check_methods(from_dict({"adapter": {"format": choice}}))


@pytest.mark.parametrize(
    ("section", "setting", "choice", "message"),
    [
        ("train", "objective", "contrastive", "unknown objective 'contrastive'"),
        ("train", "objective", {"name": "episodic", "classes": 1}, "objective 'episodic': classes = 1: input should"),
        ("train", "objective", {"name": "episodic", "images": 1}, "objective 'episodic': images = 1: input should"),
        ("train", "objective", {"name": "episodic", "tasks": "two"}, "tasks = 'two': input should be 'all' or 'one'"),
        ("train", "objective", {"name": "episodic", "temperature": 0}, "temperature = 0: input should be greater"),
        ("train", "objective", {"name": "classification", "label_smoothing": 1}, "label_smoothing = 1: input should"),
        ("train", "objective", {"name": "classification", "label_smoothing": -0.1}, "label_smoothing = -0.1: input"),
        ("train", "optimizer", {"name": "adamw", "weight_decay": -1}, "optimizer 'adamw': weight_decay = -1: input"),
        ("train", "optimizer", "adam", "unknown optimizer 'adam', did you mean 'adamw'"),
        ("train", "callbacks", ["in_trun"], "unknown callback 'in_trun', did you mean 'in_turn'"),
        ("adapter", "initializer", "eva2", "unknown initializer 'eva2'"),
        ("adapter", "format", {"name": "multi_lora", "branches": 0}, "branches = 0: input should be greater"),
    ],
)
def test_methods_and_options_that_there_are_not(section, setting, choice, message):
    with pytest.raises(metalora.UserError, match=message):
        check_methods(from_dict({section: {setting: choice}}))


def test_registries_are_reached_by_the_settings_that_name_their_methods():
    assert set(KINDS) == {"format", "initializer", "augment", "objective", "callbacks", "optimizer"}
    assert all(isinstance(registry, Registry) for registry in KINDS.values())
