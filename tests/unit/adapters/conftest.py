"""Layers with random factors and seeds, and their dense updates by the equations of DESIGN.md, section 2."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorly
import torch
from tensorly.tr_tensor import tr_to_tensor
from torch import Tensor, nn

from metalora.adapters.formats import FORMATS
from metalora.adapters.layer import AdaptedLayer
from metalora.adapters.seed_slot import SeedSlot
from metalora.adapters.support import largest_rank, shape_of

BRANCHES = 3
CHOICES = {"multi_lora": {"name": "multi_lora", "branches": BRANCHES}}

MakeLayer = Callable[..., AdaptedLayer]
Dense = Callable[[AdaptedLayer, str, Tensor | None], Tensor]


def _adapted(base: nn.Module, format: str, rank: int = 2, alpha: float = 3.0, batch: int = 2) -> AdaptedLayer:
    """Adapt a layer; factors, gains and the seeds of ``batch`` samples are random. The slot holds two layers' seeds."""
    kind, rank = FORMATS.make(CHOICES.get(format, format)), min(rank, largest_rank(base))
    size = kind.seed_size(shape_of(base, rank)) if kind.seed == "generated" else 0
    before, own, after = slice(0, 3), slice(3, 3 + size), slice(3 + size, 5 + size)
    layer = AdaptedLayer(base.requires_grad_(False), kind, rank, alpha, SeedSlot([before, own, after]), own)
    if kind.seed == "generated":
        layer.slot.fill(torch.randn(batch, after.stop, dtype=layer.weight.dtype))
    with torch.no_grad():
        for _, parameter in layer.adapter_parameters():
            parameter.normal_()
    return layer


def _dense(layer: AdaptedLayer, format: str, seed: Tensor | None, oracle: str) -> Tensor:
    """Return s dW in the shape of W, from the explicit factors of each group."""
    groups = getattr(layer.base, "groups", 1)
    down = layer.factors.down.weight.detach().chunk(groups)  # each (M, I, K...)
    up = layer.factors.up.weight.detach().flatten(1).chunk(groups)  # each (O, M)
    c = layer.factors.gain.detach() if layer.factors.gain is not None else None
    if seed is not None:
        c = seed.reshape(-1)[layer.seed_slice]
    contract = {"einsum": _einsum, "tensorly": _tensorly}[oracle]
    blocks = [contract(format, a.flatten(1), b, c, layer.rank) for a, b in zip(down, up, strict=True)]
    return layer.alpha / layer.rank * torch.cat(blocks).reshape(layer.base.weight.shape)


def _einsum(format: str, a: Tensor, b: Tensor, c: Tensor | None, rank: int) -> Tensor:
    if format == "lora":
        return torch.einsum("ri,or->oi", a, b)
    if format == "multi_lora":
        assert c is not None
        branches = [slice(n * rank, (n + 1) * rank) for n in range(BRANCHES)]
        return sum((torch.einsum("ri,r,or->oi", a[n], c[n], b[:, n]) for n in branches), torch.zeros(()).to(a))
    if format == "cp":
        return torch.einsum("ri,r,or->oi", a, c, b)
    assert c is not None
    return torch.einsum(
        "pir,roq,qp->oi",
        a.reshape(rank, rank, -1).transpose(1, 2),  # A[r0, i, r1]
        b.reshape(-1, rank, rank).permute(2, 0, 1),  # B[r1, o, r2]
        c.reshape(rank, rank),  # C[r2, r0]
    )


def _tensorly(format: str, a: Tensor, b: Tensor, c: Tensor | None, rank: int) -> Tensor:
    factor_a, factor_b = a.numpy(), b.numpy()
    if format == "tr":
        assert c is not None
        core_a = np.moveaxis(factor_a.reshape(rank, rank, -1), 1, 2)
        core_b = np.transpose(factor_b.reshape(-1, rank, rank), (2, 0, 1))
        ring = tr_to_tensor([core_a, core_b, c.numpy().reshape(rank, 1, rank)])
        return torch.from_numpy(np.ascontiguousarray(ring[:, :, 0].T))
    weights = np.ones(len(factor_a)) if c is None else c.numpy()
    return torch.from_numpy(tensorly.cp_to_tensor((weights, [factor_b, factor_a.T])))


@pytest.fixture
def adapted() -> MakeLayer:
    torch.manual_seed(0)
    return _adapted


@pytest.fixture(params=["einsum", "tensorly"])
def dense(request: pytest.FixtureRequest) -> Dense:
    return lambda layer, format, seed: _dense(layer, format, seed, request.param)


@pytest.fixture
def expected(dense: Dense) -> Callable[[AdaptedLayer, str, Tensor], Tensor]:
    """Map x one sample at a time with W + s dW of its seed, by the layer's own code."""

    def run(layer: AdaptedLayer, format: str, x: Tensor) -> Tensor:
        seeds = [None] * len(x) if layer.slot.seeds is None else list(layer.slot.seeds)
        rows = len(x) // len(seeds)
        frozen = layer.base.weight
        outputs = []
        for i, seed in enumerate(seeds):
            layer.base.weight = nn.Parameter(frozen + dense(layer, format, seed).to(frozen), requires_grad=False)
            outputs.append(layer.base(x[i * rows : (i + 1) * rows]))
        layer.base.weight = frozen
        return torch.cat(outputs)

    return run


@pytest.fixture
def close() -> Callable[[Tensor, Tensor], bool]:
    def compare(met: Tensor, wanted: Tensor) -> bool:
        assert met.shape == wanted.shape
        return bool(wanted.isfinite().all()) and torch.allclose(met, wanted, rtol=1e-10, atol=1e-10)

    return compare
