"""Triton kernels of the fused adapted convolution: each reads and writes every activation once.

Shapes: P pixels of all images, O output channels, K update channels (16, 32, 64 ...: `ops.padded`).
All are rows of channels, as channels_last images are in memory.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Measured on an H100 for a ResNet-50's shapes (pipelines/bench/LOG.md): small tiles, and many programs in flight.
TILE, BACKWARD_ROWS, BACKWARD_COLS, BACKWARD_PROGRAMS = 4096, 64, 64, 8


@triton.jit
def _up_kernel(
    z_ptr, g_ptr, up_ptr, shift_ptr, residual_ptr, out_ptr, pixels, channels, z_row, g_row,
    HAS_RESIDUAL: tl.constexpr, CEILING: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(channels, COLS)
    rows = (tl.program_id(0) // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = (tl.program_id(0) % chunks) * COLS + tl.arange(0, COLS)
    k = tl.arange(0, K)
    inside = (rows < pixels)[:, None] & (cols < channels)[None, :]
    g = tl.load(g_ptr + rows[:, None] * g_row + k[None, :], mask=(rows < pixels)[:, None], other=0.0)
    up = tl.load(up_ptr + k[:, None] + cols[None, :] * K, mask=(cols < channels)[None, :], other=0.0)
    y = tl.load(z_ptr + rows[:, None] * z_row + cols[None, :], mask=inside, other=0.0).to(ACC)
    y += tl.dot(g, up, input_precision="ieee", out_dtype=ACC)
    y += tl.load(shift_ptr + cols, mask=cols < channels, other=0.0).to(ACC)[None, :]
    target = rows[:, None] * channels + cols[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + target, mask=inside, other=0.0).to(ACC)
    if CEILING is not None:  # not minimum and maximum: a NaN must stay one
        y = tl.where(y < 0, 0.0, y)
        y = tl.where(y > CEILING, CEILING, y)
    tl.store(out_ptr + target, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _up_backward_kernel(
    dout_ptr, second_ptr, out_ptr, g_ptr, up_ptr, dz_ptr, dg_ptr, dup_ptr, pixels, channels, dout_row, second_row,
    z_row, g_row, row_programs, HAS_SECOND: tl.constexpr, CEILING: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(channels, COLS)
    chunk = tl.program_id(0) % chunks
    first = tl.program_id(0) // chunks
    cols = chunk * COLS + tl.arange(0, COLS)
    k = tl.arange(0, K)
    up = tl.load(up_ptr + cols[:, None] * K + k[None, :], mask=(cols < channels)[:, None], other=0.0)
    dup = tl.zeros((COLS, K), ACC)
    for block in range(first, tl.cdiv(pixels, ROWS), row_programs):
        rows = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (rows < pixels)[:, None] & (cols < channels)[None, :]
        dy = tl.load(dout_ptr + rows[:, None] * dout_row + cols[None, :], mask=inside, other=0.0)
        if HAS_SECOND:
            dy += tl.load(second_ptr + rows[:, None] * second_row + cols[None, :], mask=inside, other=0.0)
        if CEILING is not None:
            out = tl.load(out_ptr + rows[:, None] * channels + cols[None, :], mask=inside, other=0.0)
            dy = tl.where((out > 0) & (out < CEILING), dy, 0.0).to(dout_ptr.dtype.element_ty)
        tl.store(dz_ptr + rows[:, None] * z_row + cols[None, :], dy, mask=inside)
        g = tl.load(g_ptr + rows[:, None] * g_row + k[None, :], mask=(rows < pixels)[:, None], other=0.0)
        dup += tl.dot(tl.trans(dy), g, input_precision="ieee", out_dtype=ACC)
        dg = tl.dot(dy, up, input_precision="ieee", out_dtype=ACC)
        part = chunk.to(tl.int64) * pixels + rows
        tl.store(dg_ptr + part[:, None] * K + k[None, :], dg.to(dg_ptr.dtype.element_ty), mask=(rows < pixels)[:, None])
    part = first.to(tl.int64) * channels + cols
    tl.store(dup_ptr + part[:, None] * K + k[None, :], dup, mask=(cols < channels)[:, None])


def up(
    out: Tensor, z: Tensor, g: Tensor, up: Tensor, shift: Tensor, residual: Tensor | None, ceiling: float | None
) -> None:
    """Write ``out``, (P, O). See `metalora.adapters.fused.ops.up`; images are rows here."""
    pixels, channels = out.shape
    cols = max(16, min(128, triton.next_power_of_2(channels)))
    rows = TILE // cols
    grid = (triton.cdiv(pixels, rows) * triton.cdiv(channels, cols),)
    _up_kernel[grid](
        z, g, up, shift, residual, out, pixels, channels, z.stride(0), g.stride(0),
        HAS_RESIDUAL=residual is not None, CEILING=ceiling, K=up.shape[1], ROWS=rows, COLS=cols, ACC=_acc(z),
        num_warps=4,
    )  # fmt: skip


def up_backward(
    dz: Tensor, dout: Tensor, second: Tensor | None, out: Tensor | None, g: Tensor, up: Tensor, ceiling: float | None
) -> tuple[Tensor, Tensor]:
    """Write ``dz``, (P, O + K), but its last K columns, and return the gradients of g and of ``up``.

    See `metalora.adapters.fused.ops.up_backward`; images are rows here.
    """
    (pixels, channels), wide = dout.shape, up.shape[1]
    rows, cols = BACKWARD_ROWS, max(16, min(BACKWARD_COLS, triton.next_power_of_2(channels)))
    chunks = triton.cdiv(channels, cols)
    row_programs = min(triton.cdiv(pixels, rows), max(1, _programs(dout) // chunks))
    exact = torch.float64 if dout.dtype == torch.float64 else torch.float32
    dg = dout.new_empty(chunks, pixels, wide, dtype=dout.dtype if chunks == 1 else exact)
    dup = dout.new_empty(row_programs, channels, wide, dtype=exact)
    _up_backward_kernel[(row_programs * chunks,)](
        dout, second, out, g, up, dz, dg, dup, pixels, channels, dout.stride(0),
        0 if second is None else second.stride(0), dz.stride(0), g.stride(0), row_programs,
        HAS_SECOND=second is not None, CEILING=ceiling, K=wide, ROWS=rows, COLS=cols, ACC=_acc(dout),
        num_warps=4, num_stages=3 if dout.element_size() == 2 else 1,  # wider elements would not fit beside each other
    )  # fmt: skip
    return dg[0] if chunks == 1 else dg.sum(0).to(dout.dtype), dup.sum(0)


def _acc(like: Tensor) -> Any:
    return tl.float64 if like.dtype == torch.float64 else tl.float32


def _programs(like: Tensor) -> int:
    """Enough programs to fill the device, few enough for their parts of dB to be small beside the activations."""
    if not like.is_cuda:
        return 4
    return BACKWARD_PROGRAMS * torch.cuda.get_device_properties(like.device).multi_processor_count
