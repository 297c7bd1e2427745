"""Triton kernels of the fused adapted convolution: each reads and writes every activation once.

Shapes: N images of P pixels (formats without matrices: one of all pixels), O output channels, K update channels
(16, 32, 64 ...: `ops.padded`). All are rows of channels, as channels_last images are in memory.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Measured on an H100 for a ResNet-50's shapes (pipelines/bench/LOG.md): small tiles, and many programs in flight.
TILE, BACKWARD_ROWS, BACKWARD_COLS = 4096, 64, 64


@triton.jit
def _up_kernel(
    z_ptr, mix_ptr, up_ptr, shift_ptr, residual_ptr, out_ptr, h_ptr, pixels, channels, z_row, HAS_MIX: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, CEILING: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    chunks, blocks = tl.cdiv(channels, COLS), tl.cdiv(pixels, ROWS)
    chunk = tl.program_id(0) % chunks
    image = (tl.program_id(0) // chunks // blocks).to(tl.int64)
    rows = tl.program_id(0) // chunks % blocks * ROWS + tl.arange(0, ROWS)
    pixel, here = image * pixels + rows, (rows < pixels)[:, None]
    cols = chunk * COLS + tl.arange(0, COLS)
    k = tl.arange(0, K)
    inside = here & (cols < channels)[None, :]
    z = z_ptr + pixel[:, None] * z_row
    h = tl.load(z + channels + k[None, :], mask=here, other=0.0)
    if chunk == 0:  # apart from z, which nothing keeps
        tl.store(h_ptr + pixel[:, None] * K + k[None, :], h, mask=here)
    up = tl.load(up_ptr + k[:, None] + cols[None, :] * K, mask=(cols < channels)[None, :], other=0.0)
    if HAS_MIX:  # (h mix) up = h (mix up)
        mix = tl.load(mix_ptr + image * K * K + k[:, None] * K + k[None, :])
        up = tl.dot(mix, up, input_precision="ieee", out_dtype=ACC).to(up.dtype)
    y = tl.load(z + cols[None, :], mask=inside, other=0.0).to(ACC)
    y += tl.dot(h, up, input_precision="ieee", out_dtype=ACC)
    y += tl.load(shift_ptr + cols, mask=cols < channels, other=0.0).to(ACC)[None, :]
    target = pixel[:, None] * channels + cols[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + target, mask=inside, other=0.0).to(ACC)
    if CEILING is not None:  # not minimum and maximum: a NaN must stay one
        y = tl.where(y < 0, 0.0, y)
        y = tl.where(y > CEILING, CEILING, y)
    tl.store(out_ptr + target, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _up_backward_kernel(
    dout_ptr, second_ptr, out_ptr, h_ptr, mix_ptr, up_ptr, dz_ptr, dh_ptr, g_ptr, dmix_ptr, pixels, channels,
    dout_row, second_row, z_row, HAS_SECOND: tl.constexpr, HAS_MIX: tl.constexpr, CEILING: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(pixels, ROWS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    rows = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    pixel, here = image * pixels + rows, (rows < pixels)[:, None]
    k = tl.arange(0, K)
    dg = tl.zeros((ROWS, K), ACC)
    for start in range(0, channels, COLS):
        cols = start + tl.arange(0, COLS)
        inside = here & (cols < channels)[None, :]
        dy = tl.load(dout_ptr + pixel[:, None] * dout_row + cols[None, :], mask=inside, other=0.0)
        if HAS_SECOND:
            dy += tl.load(second_ptr + pixel[:, None] * second_row + cols[None, :], mask=inside, other=0.0)
        if CEILING is not None:
            out = tl.load(out_ptr + pixel[:, None] * channels + cols[None, :], mask=inside, other=0.0)
            dy = tl.where((out > 0) & (out < CEILING), dy, 0.0).to(dout_ptr.dtype.element_ty)
        tl.store(dz_ptr + pixel[:, None] * z_row + cols[None, :], dy, mask=inside)
        up = tl.load(up_ptr + cols[:, None] * K + k[None, :], mask=(cols < channels)[:, None], other=0.0)
        dg += tl.dot(dy, up, input_precision="ieee", out_dtype=ACC)
    dh = dg.to(dout_ptr.dtype.element_ty)
    narrow = pixel[:, None] * K + k[None, :]
    if HAS_MIX:  # g = h mix
        h = tl.load(h_ptr + narrow, mask=here, other=0.0)
        matrix = k[:, None] * K + k[None, :]
        mix = tl.load(mix_ptr + image * K * K + matrix)
        g = tl.dot(h, mix, input_precision="ieee", out_dtype=ACC)
        tl.store(g_ptr + narrow, g.to(g_ptr.dtype.element_ty), mask=here)
        dmix = tl.dot(tl.trans(h), dh, input_precision="ieee", out_dtype=ACC)
        tl.store(dmix_ptr + tl.program_id(0).to(tl.int64) * K * K + matrix, dmix)
        dh = tl.dot(dh, tl.trans(mix), input_precision="ieee", out_dtype=ACC).to(dout_ptr.dtype.element_ty)
    tl.store(dh_ptr + narrow, dh, mask=here)
    tl.store(dz_ptr + pixel[:, None] * z_row + channels + k[None, :], dh, mask=here)


def up(
    out: Tensor, h: Tensor, z: Tensor, mix: Tensor | None, up: Tensor, shift: Tensor, residual: Tensor | None,
    ceiling: float | None,
) -> None:  # fmt: skip
    """Write ``out``, (N P, O), and ``h``, (N P, K). See `metalora.adapters.fused.ops.up`; images are rows here."""
    (images, pixels), channels = _images(h, mix), out.shape[1]
    cols = max(16, min(128, triton.next_power_of_2(channels)))
    rows = _rows(TILE // cols, pixels)
    grid = (images * triton.cdiv(pixels, rows) * triton.cdiv(channels, cols),)
    _up_kernel[grid](
        z, mix, up, shift, residual, out, h, pixels, channels, z.stride(0), HAS_MIX=mix is not None,
        HAS_RESIDUAL=residual is not None, CEILING=ceiling, K=up.shape[1], ROWS=rows, COLS=cols, ACC=_acc(z),
        num_warps=4,
    )  # fmt: skip


def up_backward(
    dz: Tensor, dout: Tensor, second: Tensor | None, out: Tensor | None, h: Tensor, mix: Tensor | None, up: Tensor,
    ceiling: float | None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Write ``dz``, (N P, O + K), and return the gradients of h, (N P, K), of ``up`` and of ``mix``.

    See `metalora.adapters.fused.ops.up_backward`; images are rows here.
    """
    (images, pixels), (channels, wide) = _images(h, mix), up.shape
    rows, cols = _rows(BACKWARD_ROWS, pixels), max(16, min(BACKWARD_COLS, triton.next_power_of_2(channels)))
    blocks = triton.cdiv(pixels, rows)
    dh, g, parts = torch.empty_like(h), h, None
    if mix is not None:
        g, parts = torch.empty_like(h), up.new_empty(images, blocks, wide, wide, dtype=_exact(h))
    _up_backward_kernel[(images * blocks,)](
        dout, second, out, h, mix, up, dz, dh, g, parts, pixels, channels, dout.stride(0),
        0 if second is None else second.stride(0), dz.stride(0), HAS_SECOND=second is not None,
        HAS_MIX=mix is not None, CEILING=ceiling, K=wide, ROWS=rows, COLS=cols, ACC=_acc(dout),
        num_warps=4, num_stages=3 if dout.element_size() == 2 else 1,  # wider elements would not fit beside each other
    )  # fmt: skip
    # By the library: partial sums of the kernel's own cost more than one more read of dy (pipelines/bench/LOG.md).
    return dh, dz[:, :channels].T @ g, None if parts is None else parts.sum(1).to(up.dtype)


def _rows(most: int, pixels: int) -> int:
    return max(16, min(most, int(triton.next_power_of_2(pixels))))


def _exact(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _acc(like: Tensor) -> Any:
    return tl.float64 if like.dtype == torch.float64 else tl.float32


def _images(h: Tensor, mix: Tensor | None) -> tuple[int, int]:
    """Return N and P; where no matrix differs from image to image, all are one."""
    images = 1 if mix is None else len(mix)
    return images, len(h) // images
