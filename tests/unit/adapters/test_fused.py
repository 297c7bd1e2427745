"""Fused convolutions: the plain layers are their oracle, in float64."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torchvision.models import resnet18, resnet50

import metalora
from metalora.adapters.formats import FORMATS, Shape
from metalora.adapters.fused import fuse, ops, refusal
from metalora.adapters.fused.rewrite import FusedConv
from metalora.config import from_dict
from metalora.errors import UserError
from tests.integration.helpers import importable

RANKS = {"lora": 5, "multi_lora": 2, "cp": 16, "tr": 3}
SIZE = (3, 32, 32)


class Net(nn.Module):
    """What a test puts between the stem and the mean."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor], **convolution: object) -> None:
        super().__init__()
        settings = {"kernel_size": 3, "padding": 1} | convolution
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 24, **settings)
        self.norm = nn.BatchNorm2d(24)
        self.act = nn.ReLU(inplace=True)
        self.capped = nn.ReLU6()
        self.other = nn.Conv2d(8, 24, **settings)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.stem(x)).mean((2, 3))


def model_of(network: nn.Module, format: str, rank: int | None = None) -> metalora.MetaLoRAModel:
    """Adapters that change something, seeds that differ from image to image, and norms that are not the identity."""
    torch.manual_seed(0)
    model = metalora.adapt(network, format, rank or RANKS[format], alpha=3.0, input_size=SIZE).double().train()
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.normal_(std=0.1)
        for module in model.network.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model


def results(model: metalora.MetaLoRAModel) -> dict[str, Tensor]:
    """Return the output and all gradients of one batch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, *SIZE, dtype=torch.float64, generator=generator)
    condition = None
    if model.extractor is not None:
        condition = torch.randn(4, model.spec.condition_size, dtype=torch.float64, generator=generator)
    model.zero_grad()
    y = model.network(x, condition)
    y.backward(torch.randn(y.shape, dtype=torch.float64, generator=generator))
    return {"y": y.detach(), **{name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}}


def assert_fused_as_plain(model: metalora.MetaLoRAModel, count: int) -> list[FusedConv]:
    plain = results(model)
    assert model.network.fuse(SIZE, torch.float64) == count
    fused = results(model)
    assert plain.keys() == fused.keys()
    for name, wanted in plain.items():
        torch.testing.assert_close(fused[name], wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()), msg=name)
    return [module for module in model.network._fused[0].modules() if isinstance(module, FusedConv)]


@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.parametrize("network", [resnet18, resnet50])
def test_resnets_are_fused_whole(network: Callable[[], nn.Module], format: str) -> None:
    backbone = network()
    backbone.fc = nn.Identity()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) - 1
    fused = assert_fused_as_plain(model_of(backbone, format), convolutions)
    with_relu = [one for one in fused if one.ceiling is not None]
    assert len(with_relu) == len(fused) - (3 if network is resnet18 else 4)  # the shortcuts' end in a sum
    assert sum(one.outputs == 2 for one in fused) == (7 if network is resnet18 else 15)


@pytest.mark.parametrize("format", ["lora", "tr"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2}, {"kernel_size": 1, "padding": 0}, {"dilation": 2, "padding": (1, 2)}, {"bias": False}],
    ids=str,
)
@pytest.mark.parametrize(
    "body",
    [
        lambda n, x: n.act(n.norm(n.conv(x))),
        lambda n, x: n.norm(n.conv(x)),
        lambda n, x: n.conv(x),
        lambda n, x: F.relu(n.conv(x)),
        lambda n, x: F.relu(n.norm(n.conv(x)) + n.other(x)),
        lambda n, x: (n.other(x) + n.norm(n.conv(x))).relu(),
        lambda n, x: torch.sigmoid(n.norm(n.conv(x))) * n.norm(n.conv(x)),
        lambda n, x: n.norm(n.conv(x)) + n.norm.weight[:, None, None],  # broadcast
        lambda n, x: n.act(n.norm(n.conv(x)) * 2),
        lambda n, x: torch.sigmoid(n.conv(x)) * n.act(n.norm(n.conv(x))),  # one layer, two surroundings
        lambda n, x: n.capped(n.norm(n.conv(x)) * 1),
        lambda n, x: n.capped(n.norm(n.conv(x))),
    ],
)
def test_every_kind_of_surrounding(body: Callable[[Net, Tensor], Tensor], settings: dict, format: str) -> None:
    network = Net(body, **settings)
    used = 1 if "other" not in body.__code__.co_names else 2
    calls = 2 if "sigmoid" in body.__code__.co_names else 1
    assert_fused_as_plain(model_of(network, format), used * calls)


def test_a_reader_of_three_and_a_reader_in_place() -> None:
    def thrice(n: Net, x: Tensor) -> Tensor:
        h = n.act(n.norm(n.conv(x)))
        return h.sin() + h.cos() + h

    def in_place(n: Net, x: Tensor) -> Tensor:
        return F.hardswish(n.norm(n.conv(x)), inplace=True)

    for body in (thrice, in_place):
        assert_fused_as_plain(model_of(Net(body), "cp"), 1)


def test_what_is_not_fused() -> None:
    def trained(model: metalora.MetaLoRAModel) -> None:
        model.network.backbone.norm.weight.requires_grad_(True)

    def measuring(model: metalora.MetaLoRAModel) -> None:
        model.network.backbone.norm.train()

    for change in (trained, measuring):
        model = model_of(Net(lambda n, x: n.norm(n.conv(x))), "lora")
        change(model)
        graph, count = fuse(model.network.backbone, SIZE, torch.float64)
        assert count == 1
        assert any(node.target == "norm" for node in graph.graph.nodes)

    circular = model_of(Net(lambda n, x: n.norm(n.conv(x)), padding_mode="circular"), "lora")
    assert fuse(circular.network.backbone, SIZE, torch.float64) == (None, 0)
    for condition in (lambda x: x.sum() > 1e9, lambda x: torch.rand(()) > 0.5, lambda x: np.random.rand() > 0.5):
        branching = model_of(Net(lambda n, x, met=condition: n.conv(x) if met(x) else n.conv(x) + 1), "lora")
        assert fuse(branching.network.backbone, SIZE, torch.float64) == (None, 0)
    hooked = model_of(Net(lambda n, x: n.norm(n.conv(x))), "lora")
    hooked.network.backbone.norm.register_forward_hook(lambda module, inputs, y: 2 * y)
    assert fuse(hooked.network.backbone, SIZE, torch.float64) == (None, 0)
    for rank, count in ((8, 1), (9, 0)):  # 64 channels, and 81
        wide = model_of(Net(lambda n, x: n.conv(x)), "tr", rank)
        assert fuse(wide.network.backbone, SIZE, torch.float64)[1] == count


def test_fused_only_while_training_with_adapters_on() -> None:
    model = model_of(Net(lambda n, x: n.act(n.norm(n.conv(x)))), "lora")
    model.network.fuse(SIZE, torch.float64)
    calls: list[int] = []
    model.network._fused[0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    model(x)
    assert calls == [1]
    model.eval()(x)
    with model.train().disable_adapter():
        model(x)
    assert calls == [1]
    assert not any("fused" in name for name in model.state_dict())


def test_what_is_fused_ends_with_merging() -> None:
    model = model_of(Net(lambda n, x: n.act(n.norm(n.conv(x)))), "lora")
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    plain = model(x)
    assert model.network.fuse(SIZE, torch.float64) == 1
    model.merge()
    torch.testing.assert_close(model(x), plain)


def test_gradients_of_gradients_are_refused() -> None:
    model = model_of(Net(lambda n, x: n.act(n.norm(n.conv(x)))), "lora")
    model.network.fuse(SIZE, torch.float64)
    x = torch.randn(2, *SIZE, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_timms_norms_with_activations() -> None:
    fused = assert_fused_as_plain(model_of(timm.create_model("tf_efficientnet_lite0", num_classes=0), "cp", 4), 32)
    assert sum(one.ceiling == 6 for one in fused) == 16  # the others end a block: in a sum, or in nothing
    # its strided 3x3 convolutions pad by themselves
    assert_fused_as_plain(model_of(timm.create_model("tf_efficientnetv2_b0", num_classes=0), "lora", 2), 72)
    silent = model_of(timm.create_model("mobilenetv3_small_050", num_classes=0), "lora", 2)
    fused = assert_fused_as_plain(silent, len(silent.layers))
    assert sum(one.ceiling is None for one in fused) > 20  # hardswish stays what it is


@pytest.mark.parametrize("format", list(FORMATS))
def test_gradients_lie_in_memory_as_parameters_do(format: str) -> None:
    """DDP warns of those that do not, and copies them."""
    backbone = resnet18()
    backbone.fc = nn.Identity()
    model = model_of(backbone, format).to(memory_format=torch.channels_last)
    model.network.fuse(SIZE, torch.float64)
    condition = None if model.extractor is None else torch.randn(2, model.spec.condition_size, dtype=torch.float64)
    y = model.network(torch.randn(2, *SIZE, dtype=torch.float64), condition)
    trained = {name: p for name, p in model.trainable().items() if name.endswith(("up.weight", "down.weight"))}
    gradients = torch.autograd.grad(y.sum(), trained.values())
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        assert gradient.stride() == parameter.stride(), name


@pytest.mark.parametrize("format", ["multi_lora", "cp", "tr"])  # lora has no seed
def test_mixing_is_modulate(format: str) -> None:
    kind, shape = FORMATS.make(format), Shape(out=64, fan=64, groups=1, rank=RANKS[format])
    h = torch.randn(4, 5, kind.channels(shape), dtype=torch.float64)
    c = torch.randn(4, kind.seed_size(shape), dtype=torch.float64)
    mixing = kind.mixing(c)
    product = h * mixing[:, None] if mixing.dim() == 2 else h @ mixing
    torch.testing.assert_close(product, kind.modulate(h, c, -1))


@pytest.mark.parametrize("format", ["multi_lora", "tr"])
def test_compiles_in_one_graph(format: str) -> None:
    model = model_of(resnet18(), format)
    plain = results(model)
    model.network.fuse(SIZE, torch.float64)
    copied: list[str] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        for node in graph.graph.nodes:
            if node.target is torch.ops.aten.clone.default and node.meta["val"].dim() == 4:
                copied.append(f"{node.name}: {node.meta.get('stack_trace')}")
        return make_boxed_func(graph.forward)

    model.network.compile(backend=aot_autograd(fw_compiler=count, bw_compiler=count), fullgraph=True)
    for name, value in results(model).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-9, atol=1e-9 * float(plain[name].abs().max()))
    assert not copied, copied  # activations, for want of a layout


def test_kernels_by_the_interpreter() -> None:
    """In a process of its own: Triton asks whether to interpret when it is imported, and torch imports it."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(Path(__file__).parent / "kernels_interpreted.py"),
        ],
        env={**importable(), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "54 passed" in done.stdout


def test_why_the_kernels_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(torch.device("cpu")) is None

    def fail(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease set CC")

    monkeypatch.setattr(ops, "epilogue", fail)
    assert refusal(torch.device("cpu")) == "RuntimeError: Failed to find C compiler."


def test_the_setting_is_checked() -> None:
    with pytest.raises(UserError, match=r"kernel fused cannot be combined with activation_checkpointing"):
        from_dict({"train": {"kernel": "fused", "activation_checkpointing": True}})
