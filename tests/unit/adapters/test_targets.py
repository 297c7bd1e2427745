"""Which layers are adapted, and the refusals."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import metalora
from metalora.adapters.inject import place
from metalora.adapters.layer import AdaptedLayer
from metalora.adapters.patterns import matches
from metalora.adapters.probe import noise, probe
from metalora.errors import UserError

SIZE = (3, 32, 32)
RESNET18 = [
    "layer1.0.conv1",
    "layer1.0.conv2",
    "layer1.1.conv1",
    "layer1.1.conv2",
    "layer2.0.conv1",
    "layer2.0.conv2",
    "layer2.0.downsample.0",
    "layer2.1.conv1",
    "layer2.1.conv2",
    "layer3.0.conv1",
    "layer3.0.conv2",
    "layer3.0.downsample.0",
    "layer3.1.conv1",
    "layer3.1.conv2",
    "layer4.0.conv1",
    "layer4.0.conv2",
    "layer4.0.downsample.0",
    "layer4.1.conv1",
    "layer4.1.conv2",
]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return torchvision.models.resnet18().eval()


def adapted_names(network: nn.Module, size: tuple[int, int, int] = SIZE, **settings: Any) -> list[str]:
    model = metalora.adapt(network, settings.pop("format", "cp"), 2, input_size=size, **settings)
    found = [name for name, m in model.network.backbone.named_modules() if isinstance(m, AdaptedLayer)]
    assert found == list(model.layers)
    return found


@pytest.mark.parametrize("format", ["lora", "multi_lora", "cp", "tr"])
def test_auto_is_all_but_stem_and_classifier(format: str, resnet: nn.Module) -> None:
    assert adapted_names(resnet, format=format) == RESNET18


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (["layer1.*"], RESNET18[:4]),
        ("layer1.*", RESNET18[:4]),
        (["layer1.?.conv[12]"], RESNET18[:4]),
        (["conv1"], ["conv1", *(n for n in RESNET18 if n.endswith("conv1"))]),
        (["conv1", "fc"], ["conv1", *(n for n in RESNET18 if n.endswith("conv1")), "fc"]),
        (["layer2.0.conv2", "layer1.0.conv2"], ["layer1.0.conv2", "layer2.0.conv2"]),
        (["downsample.0"], [n for n in RESNET18 if "downsample" in n]),
        ([r"re:layer[34]\.1\.conv1"], ["layer3.1.conv1", "layer4.1.conv1"]),
        (["auto", "fc"], [*RESNET18, "fc"]),
    ],
)
def test_patterns(targets: Any, wanted: list[str], resnet: nn.Module) -> None:
    assert adapted_names(resnet, target_modules=targets) == wanted


def test_a_pattern_is_no_substring() -> None:
    names = ["a.conv1", "a.myconv1", "conv1.a", "aXconv"]
    assert matches("conv1", names) == ["a.conv1"]
    assert matches("conv*", names) == ["conv1.a"]
    assert matches("re:conv1", names) == []
    assert matches("a.conv", names) == []


def test_exclusions(resnet: nn.Module) -> None:
    left = [n for n in RESNET18 if not n.startswith("layer4") and "downsample" not in n]
    assert adapted_names(resnet, exclude_modules=("layer4.*", "downsample.0")) == left
    with pytest.raises(UserError, match="no layer of ResNet is left"):
        adapted_names(resnet, target_modules="fc", exclude_modules="fc")


@pytest.mark.parametrize("setting", ["target_modules", "exclude_modules", "modules_to_save"])
def test_pattern_that_matches_nothing(setting: str, resnet: nn.Module) -> None:
    with pytest.raises(UserError, match=rf"{setting}: 'layer1.0.cnv1'.*did you mean 'layer1.0.conv1'"):
        adapted_names(resnet, **{setting: ["layer1.0.cnv1"]})


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_layer_pattern_that_matches_nothing(setting: str, resnet: nn.Module) -> None:
    with pytest.raises(UserError, match=rf"{setting}: 'fc' matches no module"):
        adapted_names(resnet, **{setting: {"fc": 2}})


@pytest.mark.parametrize(
    "expression",
    [
        "(",
        "((a{1000}){1000}){1000}",
        "(" * 400 + ")" * 400,
        "(?R)",
        "a{" + "9" * 30 + "}",
        "(?:" + "a?" * 400 + "){9000}",
    ],
)
def test_regular_expression_that_is_none(expression: str, resnet: nn.Module) -> None:
    with pytest.raises(UserError, match=r"module pattern 're:.*' is no regular expression") as error:
        adapted_names(resnet, target_modules=[f"re:{expression}"])
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("pattern", ["re:" + "a" * 1000, "[" * 100_000, "x" * 10**6])
def test_a_pattern_has_a_length(pattern: str, resnet: nn.Module) -> None:
    with pytest.raises(UserError, match=r"module pattern '.*' has more than 1000 characters"):
        adapted_names(resnet, target_modules=[pattern])


@pytest.mark.parametrize(
    "expression", [r"((a|aa)+)+\w\d", r"(\w+\w+)+[.!]", r"(\w*)*(\w*)*(\w*)*[0-9]", r".*.*.*.*.*.*.*[0-9]"]
)
def test_a_regular_expression_that_takes_for_ever_is_stopped(expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALORA_LIMITS", "pattern_seconds=0.2")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"module pattern 're:.*' takes more than 0\.2 s"):
        matches(f"re:{expression}", ["a" * 60, "x" * 5000, "ab" * 2000] * 50)
    assert time.monotonic() - began < 5


def test_rank_and_alpha_patterns() -> None:
    placed = place(["a.x", "a.y", "b.x"], 4, None, {"a.*": 2, "x": 8}, {"re:.*y": 1.0})  # the first match wins
    assert {name: (p.rank, p.alpha) for name, p in placed.items()} == {
        "a.x": (2, 2),
        "a.y": (2, 1.0),
        "b.x": (8, 8),
    }
    assert place(["a"], 4, 16.0)["a"].alpha == 16.0


def test_patterns_reach_the_layers(resnet: nn.Module) -> None:
    model = metalora.adapt(
        resnet, "lora", 2, 6, rank_pattern={"layer4.*": 3}, alpha_pattern={"conv2": 1}, input_size=SIZE
    )
    conv1, conv2 = model.layers["layer4.1.conv1"], model.layers["layer1.0.conv2"]
    assert (conv1.rank, conv1.scale, conv1.factors.up.weight.shape[1]) == (3, 2.0, 3)
    assert (conv2.rank, conv2.scale, conv2.factors.up.weight.shape[1]) == (2, 0.5, 2)


@pytest.mark.parametrize("rank", [-1, 0, 129])
@pytest.mark.parametrize("format", ["lora", "tr"])
def test_rank_that_does_not_fit_names_the_module(rank: int, format: str, resnet: nn.Module) -> None:
    before = list(resnet.named_modules())
    with pytest.raises(UserError, match=rf"'layer2.1.conv1': rank {rank} .* from 1 to 128"):
        metalora.adapt(resnet, format, 2, rank_pattern={"layer2.1.conv1": rank}, input_size=SIZE)
    assert list(resnet.named_modules()) == before


def test_naming_a_module_of_another_kind(resnet: nn.Module) -> None:
    with pytest.raises(UserError, match=r"'layer1\.0\.bn1' cannot be adapted: it is a BatchNorm2d"):
        adapted_names(resnet, target_modules=["layer1.0.bn1", "layer1.0.conv1"])
    with pytest.raises(UserError, match="'layer1' cannot be adapted: it is a Sequential"):
        adapted_names(resnet, target_modules=["layer1"])


class Helper(nn.Module):
    """Uses one layer's weight in another method, one in a sub-module, one not at all, one only as a table's MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.direct = nn.Linear(8, 8)
        self.indirect = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.table = nn.Linear(2, 8)
        self.table_of_one = nn.Linear(2, 8)
        self.tokens_first = nn.Linear(8, 8)
        self.good = nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)
        self.register_buffer("places", torch.rand(64, 2))

    def _apply_indirect(self, h: Tensor) -> Tensor:
        layer = self.indirect
        return h @ layer.weight.T

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).flatten(2).transpose(1, 2) + self.table(self.places)
        h = h + self.table_of_one(self.places[None])
        h = self._apply_indirect(h @ self.direct.weight.T)
        h = self.tokens_first(h.transpose(0, 1)).transpose(0, 1)
        return self.last(self.good(h).mean(1))


@pytest.mark.parametrize("format", ["lora", "cp"])
def test_auto_leaves_out_what_no_seed_reaches(format: str) -> None:
    assert adapted_names(Helper(), format=format) == ["good"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("direct", "Helper uses its weight directly"),
        ("indirect", "Helper uses its weight directly"),
        ("unused", "does not call it"),
        ("table", "no row for each image"),
        ("table_of_one", "no row for each image"),
        ("tokens_first", "no row for each image"),
    ],
)
def test_naming_what_no_seed_reaches(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' cannot be adapted: .*{reason}"):
        adapted_names(Helper(), target_modules=[name])


def test_a_seedless_format_takes_any_layer_that_is_called() -> None:
    assert adapted_names(Helper(), format="lora", target_modules=["table", "tokens_first"]) == [
        "table",
        "tokens_first",
    ]


def test_probe_of_a_whole_network(resnet: nn.Module) -> None:
    layers = {"conv1", "fc", *RESNET18}
    random_state = torch.get_rng_state()
    assert probe(resnet, noise(resnet, SIZE)) == (layers, layers, set())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any("forward" in vars(module) for module in resnet.modules())
    with pytest.raises(
        UserError, match=r"ResNet fails with images of shape \(5, 32, 32\) \(set by input_size\), two at a time: "
    ):
        probe(resnet, noise(resnet, (5, 32, 32)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(2).transpose(1, 2))
        return self.fc(self.mlp(self.mha(h, h, h)[0]).mean(1))


def test_multihead_attention() -> None:
    assert adapted_names(Attention(), (3, 4, 4)) == ["mlp"]
    for pattern in ("mha.out_proj", "out_proj", "mha.*"):
        with pytest.raises(UserError, match=r"'mha\.out_proj' cannot be adapted: MultiheadAttention uses its weight"):
            adapted_names(Attention(), (3, 4, 4), target_modules=[pattern, "mlp"])


WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "functional": lambda net, x: F.linear(x, net.used.weight, net.used.bias),
    "by name": lambda net, x: x @ getattr(net, "us" + "ed").weight.T,
    "in a method": lambda net, x: net.helper(x),
    "data": lambda net, x: x @ net.used.weight.data.t(),
    "detached": lambda net, x: F.linear(x, net.used.weight.detach()),
    "beside a call": lambda net, x: net.used(x) + net.used.weight.mean(),
    "from a list": lambda net, x: x @ list(net.children())[1].weight.mT,
    "tied": lambda net, x: F.linear(x, net.tied),
}


class Reader(nn.Module):
    """Reads a layer's weight in one way or another, and that of another layer for what is no value of it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.used, self.called = nn.Linear(8, 8), nn.Linear(8, 8)
        if way == "tied":
            self.tied = self.used.weight
        self.way = way

    def helper(self, x: Tensor) -> Tensor:
        layer = self.used
        return torch.nn.functional.linear(x, layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).mean((2, 3)).to(self.called.weight.dtype)
        return WAYS[self.way](self, self.called(input=h) + self.called.weight.new_zeros(8))


@pytest.mark.parametrize("way", list(WAYS))
def test_a_weight_that_is_read_is_not_adapted(way: str) -> None:
    settings: Any = {"target_modules": ["auto", "called"], "size": (3, 8, 8)}
    assert adapted_names(Reader(way), **settings) == ["called"]
    with pytest.raises(UserError, match="'used' cannot be adapted: Reader uses its weight directly"):
        adapted_names(Reader(way), (3, 8, 8), target_modules=["used"])


def test_torchs_transformer_takes_a_faster_way_without_its_layers() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 8)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.mlp = nn.Linear(8, 8)
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.mlp(self.block(self.stem(x.flatten(2).transpose(1, 2)))).mean(1))

    assert adapted_names(Transformer(), (3, 4, 4)) == ["mlp"]
    with pytest.raises(UserError, match=r"'block.linear1' cannot be adapted: TransformerEncoderLayer uses its weight"):
        adapted_names(Transformer(), (3, 4, 4), target_modules=["block.linear1"])


def test_torchvision_swin_attention_is_left_out() -> None:
    swin = torchvision.models.swin_transformer.SwinTransformer([2, 2], 12, [2, 2], [2, 2], [4, 4], num_classes=5)
    assert adapted_names(swin, format="lora") == [
        *(f"features.1.{block}.mlp.{layer}" for block in (0, 1) for layer in (0, 3)),
        "features.2.reduction",
        *(f"features.3.{block}.mlp.{layer}" for block in (0, 1) for layer in (0, 3)),
    ]
    with pytest.raises(UserError, match=r"'features.1.0.attn.qkv' cannot be adapted: ShiftedWindowAttention"):
        adapted_names(swin, target_modules=["features.1.0.attn.qkv"])


def test_depthwise_convolutions_are_left_to_the_user() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 2)
    )
    assert adapted_names(net, (3, 5, 5)) == ["2"]
    model = metalora.adapt(net, "cp", 1, target_modules=["1"], input_size=(3, 5, 5))
    assert model.layers["1"].factors.up.groups == 8


def test_a_network_may_name_what_is_apart() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net.exempt_modules = ("2",)
    assert adapted_names(net, (3, 2, 2)) == ["1", "3"]


def test_a_network_that_is_itself_a_layer_is_refused() -> None:
    with pytest.raises(UserError, match="matches no module"):
        metalora.adapt(nn.Conv2d(3, 4, 2), "lora", 1, target_modules="*", input_size=(3, 2, 2))


class Twice(nn.Module):
    """One layer under two names of one parent, and under another parent."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, shared = nn.Linear(12, 4), nn.Linear(4, 4)
        self.first, self.second = shared, shared
        self.inner = nn.Sequential(shared)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.inner(self.second(self.first(self.stem(x.flatten(1))))))


@pytest.mark.parametrize("format", ["lora", "tr"])
def test_a_module_registered_twice_is_adapted_everywhere(format: str) -> None:
    model = metalora.adapt(Twice(), format, 2, input_size=(3, 2, 2))
    net: Any = model.network.backbone
    assert list(model.layers) == ["first"]
    assert net.first is net.second is net.inner[0] is model.layers["first"]
    nn.init.normal_(net.first.factors.up.weight)
    x = torch.randn(1, 3, 2, 2)
    before = model(x)
    plain: Any = model.merge_and_unload(None if format == "lora" else model.seed(x)[0])
    assert plain.first is plain.second is plain.inner[0]
    assert type(plain.first) is nn.Linear
    torch.testing.assert_close(plain(x), before)
