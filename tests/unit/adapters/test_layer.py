"""An adapted layer against its base layer with a dense update."""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from metalora.adapters.formats import FORMATS, Shape
from metalora.adapters.layer import AdaptedLayer
from metalora.adapters.seed_slot import SeedSlot
from metalora.adapters.support import shape_of
from metalora.errors import UserError

MakeLayer = Callable[..., AdaptedLayer]
Expected = Callable[[AdaptedLayer, str, Tensor], Tensor]
Close = Callable[[Tensor, Tensor], bool]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
KERNELS: dict[int, list[Any]] = {1: [1, 3], 2: [1, 3, (3, 1)], 3: [1, 3, (3, 1, 1)]}

formats = pytest.mark.parametrize("format", sorted(FORMATS))


@formats
@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 2, 3, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_base_plus_dense_update(
    format: str, shape: tuple[int, ...], bias: bool, adapted: MakeLayer, expected: Expected, close: Close
) -> None:
    layer = adapted(nn.Linear(6, 7, bias=bias).double(), format, batch=4)
    x = torch.randn(shape, dtype=torch.float64)
    assert close(layer(x), expected(layer, format, x))
    assert not close(layer(x), layer.base(x))


def convolutions(dim: int, mode: str) -> Iterator[nn.Module]:
    """Yield every combination of the settings a convolution has."""
    for kernel, stride, padding, dilation, groups, bias in itertools.product(
        KERNELS[dim], (1, 2), (0, 1, "same", "valid"), (1, 2), (1, 2, 4, 8), (True, False)
    ):
        if padding == "same" and stride == 2:
            continue
        yield CONVOLUTIONS[dim](8, 16, kernel, stride, padding, dilation, groups, bias, padding_mode=mode).double()


@formats
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("dense", ["tensorly"], indirect=True)
def test_convolution_is_base_plus_dense_update(
    format: str, dim: int, mode: str, adapted: MakeLayer, expected: Expected, close: Close
) -> None:
    x = torch.randn(2, 8, *(5, 6, 5)[:dim], dtype=torch.float64)
    for base in convolutions(dim, mode):
        layer = adapted(base, format)
        assert close(layer(x), expected(layer, format, x)), base


@formats
@pytest.mark.parametrize(
    "base",
    [nn.Linear(6, 7), nn.Conv1d(6, 9, 3, groups=3), nn.Conv2d(6, 4, (3, 2), groups=2), nn.Conv3d(2, 3, 2)],
    ids=lambda base: type(base).__name__,
)
def test_delta_weight_is_the_equations(
    format: str, base: nn.Module, adapted: MakeLayer, dense: Any, close: Close
) -> None:
    layer = adapted(copy.deepcopy(base).double(), format)
    seed = None if layer.slot.seeds is None else layer.slot.seeds[1]
    update = layer.delta_weight(seed)
    assert close(update.detach(), dense(layer, format, seed))
    assert update.shape == layer.base.weight.shape


@pytest.mark.parametrize("format", ["cp", "tr"])
@pytest.mark.parametrize("windows", [1, 4])
@pytest.mark.parametrize("base", [nn.Linear(6, 7), nn.Conv2d(6, 4, 3, groups=2)], ids=["linear", "conv"])
def test_seeds_of_a_batch_are_those_of_its_samples(
    format: str, windows: int, base: nn.Module, adapted: MakeLayer, close: Close
) -> None:
    """A windowed transformer has several rows of one sample, side by side."""
    layer = adapted(copy.deepcopy(base).double(), format, batch=3)
    shape = (3 * windows, 5, 6) if isinstance(base, nn.Linear) else (3 * windows, 6, 4, 4)
    x = torch.randn(shape, dtype=torch.float64)
    together, seeds = layer(x), layer.slot.seeds
    assert seeds is not None
    for i in range(3):
        layer.slot.fill(seeds[i : i + 1])
        assert close(layer(x[i * windows : (i + 1) * windows]), together[i * windows : (i + 1) * windows])
    layer.slot.fill(seeds.flip(0))
    assert not torch.allclose(layer(x), together)


@pytest.mark.parametrize("rows", [1, 2, 4, 7])
def test_rows_that_belong_to_no_sample_are_refused(rows: int, adapted: MakeLayer) -> None:
    layer = adapted(nn.Linear(6, 7), "cp", batch=3)
    with pytest.raises(RuntimeError, match=f"3 seeds for {rows} rows"):
        layer(torch.randn(rows, 6))


@formats
@pytest.mark.parametrize("base", [nn.Linear(3, 4), nn.Conv2d(4, 4, 2, groups=2, padding=1)], ids=["linear", "conv"])
def test_gradients(format: str, base: nn.Module, adapted: MakeLayer) -> None:
    layer = adapted(copy.deepcopy(base).double(), format)
    names = [f"factors.{name}" for name, _ in layer.adapter_parameters()]
    values = [parameter.detach().clone().requires_grad_() for _, parameter in layer.adapter_parameters()]
    x = torch.randn((2, 3) if isinstance(base, nn.Linear) else (2, 4, 3, 2), dtype=torch.float64)
    inputs = [x.requires_grad_(), *values]
    if layer.slot.seeds is not None:
        inputs.append(layer.slot.seeds.requires_grad_())

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        if layer.slot.seeds is not None:
            layer.slot.fill(rest[-1])
        return functional_call(layer, dict(zip(names, rest, strict=False)), x)

    assert torch.autograd.gradcheck(run, inputs)
    gradients = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@formats
@pytest.mark.parametrize("base", [nn.Linear(6, 7), nn.Conv2d(6, 6, 3, groups=3)], ids=["linear", "conv"])
def test_fresh_layer_is_its_base(format: str, base: nn.Module) -> None:
    kind, seed = FORMATS.make(format), slice(0, 2 if format == "cp" else 4)
    slot = SeedSlot([seed])
    slot.fill(torch.randn(2, seed.stop))
    layer = AdaptedLayer(base, kind, 2, 5.0, slot, seed)
    x = torch.randn((2, 6) if isinstance(base, nn.Linear) else (2, 6, 5, 5))
    assert torch.equal(layer(x), base(x))
    assert layer.factors.down.weight.std() > 0.05


@formats
def test_identity_seed_changes_nothing(format: str) -> None:
    kind = FORMATS.make(format)
    sizes = Shape(out=20, fan=20, groups=1, rank=3)
    c, channels = kind.identity(sizes).expand(2, -1), kind.channels(sizes)
    for shape, dim in (((2, channels, 4, 5), 1), ((2, 4, 5, channels), -1), ((2, channels), -1)):
        h = torch.randn(shape)
        assert torch.equal(kind.modulate(h, c, dim), h)


def test_cp_with_identity_seed_has_the_gradients_of_lora(adapted: MakeLayer) -> None:
    base = nn.Conv2d(4, 6, 3)
    cp, lora = adapted(base, "cp"), adapted(base, "lora")
    lora.factors.down.weight.data.copy_(cp.factors.down.weight)
    lora.factors.up.weight.data.copy_(cp.factors.up.weight)
    cp.slot.fill(torch.ones(2, 7))
    x = torch.randn(2, 4, 5, 5)
    for layer in (cp, lora):
        layer(x).square().sum().backward()
    assert torch.equal(cp.factors.down.weight.grad, lora.factors.down.weight.grad)
    assert torch.equal(cp.factors.up.weight.grad, lora.factors.up.weight.grad)


@formats
@pytest.mark.parametrize("base", [nn.Linear(6, 7), nn.Conv2d(6, 9, 3, groups=3)], ids=["linear", "conv"])
def test_the_size_is_the_declared_parameters(format: str, base: nn.Module, adapted: MakeLayer) -> None:
    layer = adapted(copy.deepcopy(base), format)
    declared = dict(layer.adapter_parameters())
    assert layer.format.size(shape_of(base, 2)) == sum(p.numel() for p in declared.values())
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    assert {f"factors.{name}": p for name, p in declared.items()} == trained


@formats
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("base", [nn.Linear(6, 7), nn.Conv2d(6, 4, 3, groups=2)], ids=["linear", "conv"])
def test_merged_is_unmerged(
    format: str, dtype: torch.dtype, tolerance: float, base: nn.Module, adapted: MakeLayer
) -> None:
    layer = adapted(copy.deepcopy(base).to(dtype), format, batch=1)
    x = torch.randn((2, 6) if isinstance(base, nn.Linear) else (2, 6, 5, 5), dtype=dtype)
    before, frozen = layer(x), layer.base.weight
    bits = frozen.clone()
    layer.merge(None if layer.slot.seeds is None else layer.slot.seeds[0])
    assert layer.merged
    assert not layer.base.weight.requires_grad
    torch.testing.assert_close(layer(x), before, rtol=tolerance, atol=tolerance)
    assert not torch.allclose(layer.base.weight, bits)
    with pytest.raises(UserError, match="merged already"):
        layer.merge()
    layer.unmerge()
    assert layer.base.weight is frozen
    assert torch.equal(frozen, bits)
    assert torch.equal(layer(x), before)
    with pytest.raises(UserError, match="not merged"):
        layer.unmerge()


def test_unmerge_follows_a_cast_in_between(adapted: MakeLayer) -> None:
    layer = adapted(nn.Linear(6, 7), "lora")
    layer.merge()
    layer.double().unmerge()
    assert layer.base.weight.dtype == torch.float64
    assert layer(torch.randn(2, 6).double()).dtype == torch.float64


@pytest.mark.parametrize("format", ["cp", "tr"])
def test_delta_weight_of_a_generated_format_needs_a_seed(format: str, adapted: MakeLayer) -> None:
    layer = adapted(nn.Linear(6, 7), format)
    with pytest.raises(UserError, match="depends on a seed"):
        layer.delta_weight()
    layer.slot.fill(None)
    with pytest.raises(RuntimeError, match="no seed"):
        layer(torch.randn(2, 6))


@pytest.mark.parametrize("format", ["cp", "tr"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_seeds_take_the_type_of_the_backbone(format: str, dtype: torch.dtype, adapted: MakeLayer) -> None:
    layer = adapted(nn.Linear(6, 7).to(dtype), format)
    assert layer.slot.seeds is not None
    layer.slot.fill(layer.slot.seeds.float())
    assert layer(torch.randn(2, 6, dtype=dtype)).dtype == dtype


def test_hooks_on_the_layers_output_are_not_copied_into_the_adapter(adapted: MakeLayer) -> None:
    base, seen = nn.Linear(6, 7), []
    base.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    adapted(base, "lora")(torch.randn(2, 6))
    assert seen == [(2, 7)]


class OwnForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight / weight.norm(), bias)


def patched() -> nn.Module:
    layer = nn.Linear(6, 7)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(6, 7))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.BatchNorm2d(3), "is a BatchNorm2d; Linear, Conv1d"),
        (lambda: nn.ConvTranspose2d(3, 3, 3), "is a ConvTranspose2d"),
        (lambda: OwnForward(6, 7), "OwnForward has a forward of its own"),
        (lambda: OwnConvForward(6, 7, 3), "OwnConvForward has a forward of its own"),
        (patched, "Linear has a forward of its own"),
        (lambda: weight_norm(nn.Linear(6, 7)), "parametrized"),
        (old_weight_norm, "computed from other tensors"),
        (lambda: nn.LazyLinear(7), "no size before"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_adapted_is_refused(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        AdaptedLayer(make(), FORMATS.make("lora"), 1, 1.0, SeedSlot(), slice(0, 0))


class Plain(nn.Conv2d):
    """A subclass without a forward of its own."""


def test_subclass_with_the_plain_forward_is_taken(adapted: MakeLayer) -> None:
    assert isinstance(adapted(Plain(6, 7, 3), "lora").factors.down, Plain)


@pytest.mark.parametrize("format", ["lora", "tr"])
def test_timms_padding_convolution(format: str, adapted: MakeLayer, expected: Expected, close: Close) -> None:
    from timm.layers import Conv2dSame

    for size, stride, dilation in itertools.product((6, 7), (1, 2), (1, 2)):
        layer = adapted(Conv2dSame(4, 6, 3, stride=stride, dilation=dilation).double(), format)
        x = torch.randn(2, 4, size, size, dtype=torch.float64)
        assert close(layer(x), expected(layer, format, x))
        assert layer(x).shape[-1] == -(-size // stride)


@pytest.mark.parametrize("rank", [-1, 0, 7, 100])
def test_rank_that_does_not_fit(rank: int) -> None:
    with pytest.raises(UserError, match=f"rank {rank} does not fit: it takes ranks from 1 to 6"):
        AdaptedLayer(nn.Linear(6, 7), FORMATS.make("lora"), rank, 1.0, SeedSlot(), slice(0, 0))


def test_unknown_format_lists_the_choices() -> None:
    with pytest.raises(UserError, match=r"'tt'.*cp, lora, multi_lora, tr"):
        FORMATS.make("tt")
