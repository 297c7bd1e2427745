"""What is taken as a backbone: wrappers are left off, and the rest is refused in one line."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import metalora
from metalora.errors import UserError
from metalora.models.backbones.build import build_backbone
from metalora.tracking.served_model import write_network

MakeModel = Callable[..., metalora.MetaLoRAModel]
SIZE = (3, 16, 16)


def inside(wrap: Callable[[nn.Module], Any]) -> Callable[[Any], nn.Module]:
    """Wrap parts of a network, one within the other."""

    def wrapped(net: Any) -> nn.Module:
        net.blocks[0] = wrap(net.blocks[0])
        net.blocks = wrap(net.blocks)
        net.mlp[2] = wrap(net.mlp[2])
        return net

    return wrapped


def compiled(net: nn.Module) -> Any:
    return torch.compile(net, backend="eager")


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


WRAPS: dict[str, Callable[[Any], Any]] = {
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "data parallel": nn.DataParallel,
    "compiled data parallel": lambda net: compiled(nn.DataParallel(net)),
    "averaged": AveragedModel,
    "checkpointed": checkpoint_wrapper,
    "parts compiled": inside(compiled),
    "parts data parallel": inside(nn.DataParallel),
    "parts checkpointed": inside(checkpoint_wrapper),
}


@pytest.mark.parametrize("wrap", list(WRAPS))
@pytest.mark.parametrize("format", ["lora", "tr"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_adapters_fit_however_the_backbone_is_wrapped(
    wrap: str, format: str, lively: MakeModel, net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    wrapped = WRAPS[wrap](copy.deepcopy(net))
    keys = list(wrapped.state_dict())
    model = lively(format, backbone=wrapped, modules_to_save=["norm"])
    assert list(model.layers) == list(lively(format).layers)
    folder = metalora.save(model, tmp_path / "adapter")
    for backbone in (net, wrapped):
        assert torch.equal(metalora.load(backbone, folder)(images), model(images))
    assert list(wrapped.state_dict()) == keys
    other = lively("cp", extractor=wrapped)
    assert torch.equal(other.extractor(images), lively("cp", extractor=net).extractor(images))


@pytest.mark.usefixtures("gloo")
def test_a_backbone_in_ddp(lively: MakeModel, net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    ddp = nn.parallel.DistributedDataParallel(copy.deepcopy(net).requires_grad_(True))
    model = lively("tr", backbone=ddp)
    assert torch.equal(metalora.load(net, metalora.save(model, tmp_path / "adapter"))(images), model(images))


def test_a_traced_graph_is_a_network_like_others(lively: MakeModel, net: nn.Module, images: Tensor) -> None:
    graph = fx.symbolic_trace(net)
    model = lively("tr", backbone=graph)
    assert isinstance(model.network.backbone, fx.GraphModule)
    with model.disable_adapter():
        assert torch.equal(model(images), net(images))
    assert not torch.allclose(model(images), net(images))


class Returns(nn.Module):
    """Returns something else than features."""

    def __init__(self, net: nn.Module, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net = net
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.net(x))


def fail(error: Exception) -> Callable[[Tensor], Any]:
    def run(features: Tensor) -> Any:
        raise error

    return run


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "dict": (lambda h: OrderedDict(out=h, aux=h), "got a OrderedDict of 'out', 'aux'"),
    "tuple": (lambda h: (h, h), "got a tuple of 2"),
    "none": (lambda h: None, "got a NoneType"),
    "map": (lambda h: h[:, :, None, None], r"got shape \(2, 6, 1, 1\)"),
    "vector": (lambda h: h.sum(1), r"got shape \(2,\)"),
    "one row": (lambda h: h.mean(0, keepdim=True), r"got shape \(1, 6\)"),
}


@pytest.mark.parametrize("output", list(OUTPUTS))
@pytest.mark.parametrize("format", ["lora", "tr"])
def test_outputs_that_are_no_features(format: str, output: str, net: nn.Module) -> None:
    function, message = OUTPUTS[output]
    with pytest.raises(UserError, match=rf"the backbone must map images to \(B, features\), {message} for two images"):
        metalora.adapt(Returns(net, function), format, 2, labels=["a", "b"], input_size=SIZE)
    if output in ("dict", "tuple", "none"):
        with pytest.raises(UserError, match=f"an extractor of pooled features must return a tensor, {message}"):
            metalora.adapt(Returns(net, function), "cp", 2, extractor_features="pooled", input_size=SIZE)


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), IndexError("x"), AttributeError("x"), NotImplementedError("x"), ZeroDivisionError("x"),
     AssertionError("x"), torch.OutOfMemoryError("x"), Exception("two\nlines")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_network_that_fails(error: Exception, net: nn.Module) -> None:
    with pytest.raises(
        UserError, match=rf"Returns fails with images of shape .* two at a time: {type(error).__name__}"
    ):
        metalora.adapt(Returns(net, fail(error)), "lora", 2, input_size=SIZE)


def lazy(net: Any) -> nn.Module:
    net.mlp.append(nn.LazyLinear(3))
    return net


def shares_a_generator(net: Any) -> nn.Module:
    net.stream = (i for i in range(3))
    return net


def not_a_leaf(net: Any) -> nn.Module:
    net.computed = net.stem.weight.clone().requires_grad_(True) * 2
    return net


def with_state(net: Any) -> nn.Module:
    class Stateful(nn.Identity):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    net.mlp.append(Stateful())
    return net


def integral(net: Any) -> nn.Module:
    net.tokens.weight = nn.Parameter(net.tokens.weight.long(), requires_grad=False)
    net.tokens.bias = None
    net.tokens.register_forward_pre_hook(lambda layer, args: args[0].long())
    net.tokens.register_forward_hook(lambda layer, args, output: output.float())
    return net


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "name": (lambda net: "resnet18", "the backbone must be a torch.nn.Module, got 'resnet18'"),
    "function": (lambda net: net.forward, "the backbone must be a torch.nn.Module, got <bound method"),
    "state": (lambda net: net.state_dict(), "the backbone must be a torch.nn.Module, got OrderedDict\\("),
    "traced": (lambda net: torch.jit.trace(net, torch.zeros(2, *SIZE)), "is TorchScript, whose layers cannot be"),
    "meta": (lambda net: net.to("meta"), "'stem.weight' is on the meta device"),
    "lazy": (lazy, "'mlp.3.weight' has no size before the first forward"),
    "extra state": (with_state, r"state 'mlp\.3\._extra_state' is a dict, no tensor"),
    "generator": (shares_a_generator, "Net cannot be copied, as adapting it needs: TypeError"),
    "graph": (not_a_leaf, "Net cannot be copied, as adapting it needs: RuntimeError"),
    "arguments": (lambda net: nn.Bilinear(2, 2, 2), "Bilinear fails with images .* TypeError"),
    "no parameters": (lambda net: nn.Flatten(), "no layer of Flatten is left to adapt"),
    "whole numbers": (integral, "'tokens' cannot be adapted: its weight is of type torch.int64"),
}  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Lazy modules", "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace"
)
@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_is_refused(kind: str, net: nn.Module) -> None:
    make, message = REFUSED[kind]
    backbone = make(net)
    with pytest.raises(UserError, match=message) as refused:
        metalora.adapt(
            backbone, "lora", 2, target_modules="tokens" if kind == "whole numbers" else "auto", input_size=SIZE
        )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("size", [28, (28, 28), (3, 0, 28), "large", (3, 28.0, 28)])
def test_an_input_size_that_is_none(size: Any, net: nn.Module) -> None:
    net.input_size = size
    with pytest.raises(UserError, match=r"input_size must be \(channels, height, width\) of an image, got"):
        metalora.adapt(net, "lora", 2)
    with pytest.raises(UserError, match="input_size must be"):
        metalora.adapt(net, "lora", 2, input_size=size)


class InPlace(nn.Module):
    """Writes to its input, as networks do that normalise it themselves."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(0.5).div_(2))


def test_the_extractor_leaves_the_images_alone(net: nn.Module, images: Tensor) -> None:
    model = metalora.adapt(InPlace(net), "tr", 2, extractor_features="both", input_size=SIZE).eval()
    before = images.clone()
    model.extractor(images)
    assert torch.equal(images, before)
    assert torch.equal(model(images), InPlace(net)(before))


@pytest.mark.parametrize("training", [False, True])
def test_a_model_is_in_the_mode_of_its_backbone(training: bool, net: nn.Module) -> None:
    model = metalora.adapt(net.train(training), "lora", 2, modules_to_save="norm", input_size=SIZE)
    assert model.training == model.network.saved["norm"].training == training
    assert not model.network.backbone.blocks.training


def test_saved_tensors_that_share_memory(lively: MakeModel, net: Any, images: Tensor, tmp_path: Path) -> None:
    memory = torch.ones(8)
    net.blocks[0].bn1.register_buffer("kept", memory[:6])
    net.blocks[0].bn1.register_buffer("kept_too", memory[2:])
    model = lively("lora", modules_to_save=["blocks.0.bn1"])
    assert torch.equal(metalora.load(net, metalora.save(model, tmp_path / "adapter"))(images), model(images))


@pytest.mark.filterwarnings("ignore::UserWarning:timm", "ignore::DeprecationWarning:timm")
def test_networks_that_have_a_tensor_under_several_names(tmp_path: Path) -> None:
    backbone = build_backbone("timm/coat_lite_tiny", "none", 32)
    file = str(tmp_path / "backbone.safetensors")
    write_network(backbone, file)
    again = build_backbone("timm/coat_lite_tiny", "none", 32, file=file)
    state = backbone.net.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) < len(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.net.state_dict().items())


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
@pytest.mark.parametrize("format", ["lora", "tr"])
def test_a_layer_that_is_called_from_a_plain_list_is_refused(kind, format):
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.c1, self.c2 = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
            layers = [self.stem, self.c1, self.c2]
            self.stages = {"list": layers, "tuple": tuple(layers), "dict": dict(enumerate(layers))}[kind]

        def forward(self, x):
            for layer in self.stages.values() if kind == "dict" else self.stages:
                x = layer(x)
            return x.mean((2, 3))

    with pytest.raises(UserError, match=r"module 'c1' cannot be adapted: the network holds it in a plain list"):
        metalora.adapt(Held(), format=format, rank=1, input_size=(3, 16, 16))
