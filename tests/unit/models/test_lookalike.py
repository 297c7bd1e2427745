"""Adapted layers, and modules trained in full, look to their network like what they replace.

The oracle is the plain network: with merged weights, or with the trained modules put into it by hand.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import metalora
from metalora.errors import UserError

MakeModel = Callable[..., metalora.MetaLoRAModel]


class Linear(nn.Linear):
    """A class of one's own, with a method, an attribute, and the plain forward."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain_of_input = 0.5

    def halved(self, x: Tensor) -> Tensor:
        return self.gain_of_input * x


class Reader(nn.Module):
    """Does to its layers what ``body`` says, between a stem and a mean."""

    def __init__(self, body: Callable[["Reader", Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.fc = Linear(8, 8)
        self.last = nn.Linear(8, 4)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self, self.stem(x)).relu())


def strided(net: Reader, x: Tensor) -> Tensor:
    net.conv.stride = (2, 2)
    return net.conv(x)


def counting(net: Reader, x: Tensor) -> Tensor:
    net.conv.calls = getattr(net.conv, "calls", 0) + 1
    return net.conv(x)


def by_kind(net: Reader, x: Tensor) -> Tensor:
    for layer in net.children():
        if isinstance(layer, nn.Conv2d) and layer is not net.stem:
            x = layer(x)
        if isinstance(layer, nn.Linear) and layer is not net.last:
            x = layer(x.mean((2, 3)))
    return x


def pooled(body: Callable[[Reader, Tensor], Tensor]) -> Callable[[Reader, Tensor], Tensor]:
    return lambda net, x: body(net, x).mean((2, 3))


BODIES: dict[str, Callable[[Reader, Tensor], Tensor]] = {
    "sizes": lambda n, x: n.fc(x.mean((2, 3)).view(-1, n.fc.in_features)) * n.fc.out_features,
    "geometry": pooled(lambda n, x: n.conv(x)[:, :, :: n.conv.stride[0]] * n.conv.kernel_size[0] / n.conv.padding[0]),
    "dtype": pooled(lambda n, x: n.conv(x.to(n.conv.weight.dtype)).to(n.conv.bias.device)),
    "keyword": lambda n, x: n.fc(input=n.conv(input=x).mean((2, 3))),
    "kind": by_kind,
    "slice": pooled(lambda n, x: n.blocks[1:](n.blocks[:3](x))),
    "items": pooled(lambda n, x: n.blocks[-1](n.blocks[0](x)) * len(n.blocks)),
    "own attribute": lambda n, x: n.fc(x.mean((2, 3))) * n.fc.gain_of_input,
    "own method": lambda n, x: n.fc.halved(n.fc(x.mean((2, 3)))),
    "setting": pooled(counting),
    "setting what is there": pooled(strided),
    "forward itself": pooled(lambda n, x: n.blocks(x)),
}
bodies = pytest.mark.parametrize("body", list(BODIES))


def adapted(network: nn.Module, lively: MakeModel, format: str = "lora", **settings: Any) -> metalora.MetaLoRAModel:
    network.eval().requires_grad_(False)
    return lively(format, backbone=network, target_modules=settings.pop("target_modules", "auto"), **settings)


def merged(model: metalora.MetaLoRAModel, images: Tensor) -> nn.Module:
    seed = model.seed(images).mean(0).detach() if model.extractor is not None else None
    return copy.deepcopy(model).merge_and_unload(seed)


@bodies
@pytest.mark.parametrize("format", ["lora", "tr"])
def test_what_a_network_does_with_its_layers(format: str, body: str, lively: MakeModel, images: Tensor) -> None:
    network = Reader(BODIES[body])
    wanted = network.eval()(images)
    model = adapted(network, lively, format)
    assert not torch.allclose(model(images), wanted, atol=1e-3)
    torch.testing.assert_close(model(images[:1]), merged(model, images[:1])(images[:1]))
    with model.disable_adapter():
        torch.testing.assert_close(model(images), wanted)
    assert torch.equal(copy.deepcopy(model)(images), model(images))
    plain = [type(module) for module in merged(model, images[:1]).modules()]
    assert plain == [type(module) for module in network.modules()]


@pytest.mark.slow
@bodies
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_in_one_graph(body: str, lively: MakeModel, images: Tensor) -> None:
    torch._dynamo.reset()
    model = adapted(Reader(BODIES[body]), lively, "tr")
    compiled = torch.compile(model.network, fullgraph=body != "setting", backend="eager")  # each call sets another
    condition = model.extractor(images)
    for _ in range(2):
        torch.testing.assert_close(compiled(images, condition), model.network(images, condition))
    torch._dynamo.reset()


def test_an_adapted_layer_answers_as_the_layer() -> None:
    network = Reader(BODIES["keyword"])
    model = metalora.adapt(network, "lora", 2, target_modules=["conv", "fc"], input_size=(3, 8, 8))
    met: Any = model.network.backbone
    for name in ("conv", "fc"):
        mine, theirs = getattr(met, name), getattr(network, name)
        for attribute in vars(theirs).keys() - vars(nn.Module()).keys():
            assert getattr(mine, attribute) == getattr(theirs, attribute)
        assert torch.equal(mine.weight, theirs.weight)
        assert torch.equal(mine.bias, theirs.bias)
        assert isinstance(mine, nn.Conv2d if name == "conv" else nn.Linear)
        assert not hasattr(mine, "nowhere")
    met.conv.stride = 2
    assert met.conv.base.stride == met.conv.factors.down.stride == met.conv.stride == 2
    met.fc.flag = True
    assert met.fc.flag
    assert not hasattr(met.fc.base, "flag")


@pytest.mark.parametrize("name", ["scale", "rank", "factors", "merge"])
def test_an_attribute_that_the_adapter_would_hide(name: str) -> None:
    network = Reader(lambda n, x: n.fc(x.mean((2, 3))))
    setattr(network.fc, name, 3.0)
    with pytest.raises(UserError, match=f"'fc' cannot be adapted: its attribute '{name}' would be hidden"):
        metalora.adapt(network, "lora", 2, target_modules="fc", input_size=(3, 8, 8))


@pytest.mark.parametrize("format", ["lora", "tr"])
def test_hooks_see_the_adapted_layer(format: str, lively: MakeModel, images: Tensor) -> None:
    network = Reader(BODIES["keyword"])
    seen: list[Tensor] = []
    network.fc.register_forward_pre_hook(
        lambda layer, args, kwargs: ((), {"input": 2 * kwargs["input"]}), with_kwargs=True
    )
    network.fc.register_forward_hook(lambda layer, args, output: 3 * output)
    network.conv.register_forward_hook(lambda layer, args, output: seen.append(output))
    model = adapted(network, lively, format)
    plain = merged(model, images[:1])
    seen.clear()
    torch.testing.assert_close(model(images[:1]), plain(images[:1]))
    through, alone = seen
    torch.testing.assert_close(through, alone)
    model.network.backbone.conv.register_forward_hook(lambda layer, args, output: seen.append(0 * output))
    model(images)
    assert len(seen) == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_casting_and_applying(dtype: torch.dtype, lively: MakeModel, images: Tensor) -> None:
    model = adapted(Reader(BODIES["dtype"]), lively, "tr").to(dtype)
    visited: list[nn.Module] = []
    model.apply(visited.append)
    assert set(model.layers.values()) <= set(visited)
    assert model(images.to(dtype)).dtype == dtype


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(8, 8, 2, stride=2)
        self.grid_size = (8, 8)
        self.register_buffer("moved", torch.zeros(()))

    def dynamic_feat_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(side // 2 for side in size)

    def diagonal(self, x: Tensor) -> Tensor:
        return self.proj(x) + 1

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.moved += 1
        return self.proj(x).relu() + self.moved


class Whole(nn.Module):
    """Has modules of many kinds, and does to them what ``body`` says."""

    def __init__(self, body: Callable[["Whole", Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.patches = Patches()
        self.named = nn.ModuleDict({"a": nn.Conv2d(8, 8, 1), "b": nn.Conv2d(8, 8, 1)})
        self.listed = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)])
        self.chain = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.norm = nn.BatchNorm2d(8)
        self.free = nn.ParameterDict({"shift": nn.Parameter(torch.randn(8, 1, 1))})
        self.optional: nn.Module = nn.Sequential()
        self.conv = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 4)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.body(self, self.stem(x))).mean((2, 3)))


def each(net: Whole, x: Tensor) -> Tensor:
    for name, module in net.named.items():
        x = module(x) if name in net.named else x
    for key in net.named.keys():  # noqa: SIM118
        x = x + net.named[key](x)
    for layer in net.listed:
        x = layer(x)
    return x * len(net.named) + sum(m(x) for m in reversed(net.listed))


PARTS: dict[str, tuple[str, Callable[[Whole, Tensor], Tensor]]] = {
    "attribute": ("patches", lambda n, x: n.patches(x) * n.patches.grid_size[0]),
    "part": ("patches", lambda n, x: n.patches.proj(x)),
    "method": ("patches", lambda n, x: n.patches.diagonal(x) * n.patches.dynamic_feat_size(x.shape)[-1]),
    "items": ("named", each),
    "list": ("listed", each),
    "sequence": ("chain", lambda n, x: n.chain[1:](n.chain[0](x)) + n.chain[:1](x) * len(n.chain)),
    "weight": ("norm", lambda n, x: torch.batch_norm(
        x, n.norm.weight, n.norm.bias, n.norm.running_mean, n.norm.running_var, False, 0, 1e-5, False)),
    "kind": ("norm", lambda n, x: n.norm(x) if isinstance(n.norm, nn.BatchNorm2d) else x),
    "parameters": ("free", lambda n, x: x + n.free["shift"]),
    "truth": ("optional", lambda n, x: n.optional(x) * 2 if n.optional else x),
    "setting": ("patches", lambda n, x: n.patches(x) if setattr(n.patches, "grid_size", (1, 1)) is None else x),
}  # fmt: skip


@pytest.mark.parametrize("format", ["lora", "cp"])
@pytest.mark.parametrize("part", list(PARTS))
def test_what_a_network_does_with_modules_trained_in_full(
    part: str, format: str, lively: MakeModel, images: Tensor
) -> None:
    name, body = PARTS[part]
    network = Whole(body)
    wanted = network.eval()(images)
    model = adapted(network, lively, format, target_modules="conv", modules_to_save=name)
    optimizer = torch.optim.SGD(model.trainable().values(), 1e-4)
    model.train()
    model(images).square().sum().backward()
    optimizer.step()
    model.eval()
    trained = {n.removeprefix(f"saved.{name}."): t for n, t in model.adapter_state().items() if n.startswith("saved.")}
    assert trained.keys() == dict(network.get_submodule(name).state_dict()).keys()
    plain = merged(model, images[:1])
    by_hand = {f"{name}.{n}": tensor for n, tensor in trained.items()}
    torch.testing.assert_close(functional_call(plain, by_hand, images[:1]), model(images[:1]))
    assert not torch.equal(model(images), wanted)
    with model.disable_adapter():
        assert torch.equal(model(images), wanted)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)) if "lambda" not in repr(body) else model):
        assert torch.equal(twin(images), model(images))


def test_a_module_trained_in_full_under_two_names(lively: MakeModel, images: Tensor) -> None:
    network = Whole(lambda n, x: n.listed[0](n.chain[0](x)))
    network.chain[0] = network.listed[0]
    model = adapted(network, lively, "lora", target_modules="conv", modules_to_save="listed.0")
    inner: Any = model.network.backbone
    assert inner.chain[0] is inner.listed[0] is model.network.saved["listed.0"]
    with model.disable_adapter():
        assert torch.equal(model(images), network(images))
