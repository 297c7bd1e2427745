"""Triton kernels of the fused adapted convolution: each reads and writes every activation once.

Shapes: N images of P pixels (formats without seeds: one of all pixels), O output channels, M update channels, K those
padded (16, 32, 64: `ops.padded`). Images are rows of channels, (N P, O), as channels_last ones are in memory.
"""

import math
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

# Measured on an H100 for a ResNet-50's shapes (pipelines/bench/LOG.md): small tiles, and many programs in flight.
TILE, BACKWARD_ROWS, BACKWARD_COLS = 4096, 64, 64
Rows = TypeVar("Rows", Tensor, Tensor | None)


@triton.jit
def _epilogue_kernel(
    z_ptr, mix_ptr, up_ptr, scale_ptr, shift_ptr, residual_ptr, out_ptr, h_ptr, pixels, channels, wide, z_row,
    residual_row, mix_image, MIX: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RELU: tl.constexpr, CEILING: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = tl.float64 if EXACT else tl.float32
    chunks, blocks = tl.cdiv(channels, COLS), tl.cdiv(pixels, ROWS)
    chunk = tl.program_id(0) % chunks
    image = (tl.program_id(0) // chunks // blocks).to(tl.int64)
    rows = tl.program_id(0) // chunks % blocks * ROWS + tl.arange(0, ROWS)
    pixel, here = image * pixels + rows, (rows < pixels)[:, None]
    cols = chunk * COLS + tl.arange(0, COLS)
    k = tl.arange(0, K)
    inside, factor = here & (cols < channels)[None, :], (k < wide)[:, None] & (cols < channels)[None, :]
    z = z_ptr + pixel[:, None] * z_row
    h = tl.load(z + channels + k[None, :], mask=here, other=0.0)
    if chunk == 0:  # apart from z, which nothing keeps
        tl.store(h_ptr + pixel[:, None] * K + k[None, :], h, mask=here)
    up = tl.load(up_ptr + k[:, None] + cols[None, :] * wide, mask=factor, other=0.0).to(acc)
    up *= tl.load(scale_ptr + cols, mask=cols < channels, other=0.0).to(acc)[None, :]
    if MIX == 1:  # (h diag(c)) up = h (diag(c) up)
        up *= tl.load(mix_ptr + image * mix_image + k, mask=k < wide, other=0.0).to(acc)[:, None]
    up = up.to(h.dtype)
    if MIX == 2:  # (h mix) up = h (mix up)
        square = (k < wide)[:, None] & (k < wide)[None, :]
        mix = tl.load(mix_ptr + image * mix_image + k[:, None] * wide + k[None, :], mask=square, other=0.0)
        up = tl.dot(mix.to(h.dtype), up, input_precision="ieee", out_dtype=acc).to(h.dtype)
    y = tl.load(z + cols[None, :], mask=inside, other=0.0).to(acc)
    y += tl.dot(h, up, input_precision="ieee", out_dtype=acc)
    y += tl.load(shift_ptr + cols, mask=cols < channels, other=0.0).to(acc)[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + pixel[:, None] * residual_row + cols[None, :], mask=inside, other=0.0).to(acc)
    if RELU:  # not minimum and maximum: a NaN must stay one
        y = tl.where(y < 0, 0.0, y)
        if CEILING is not None:
            y = tl.where(y > CEILING, CEILING, y)
    tl.store(out_ptr + pixel[:, None] * channels + cols[None, :], y.to(h.dtype), mask=inside)


@triton.jit
def _epilogue_backward_kernel(
    dout_ptr, second_ptr, out_ptr, h_ptr, mix_ptr, up_ptr, scale_ptr, dz_ptr, dh_ptr, g_ptr, dmix_ptr, pixels,
    channels, wide, dout_row, second_row, z_row, mix_image, HAS_SECOND: tl.constexpr, MIX: tl.constexpr,
    RELU: tl.constexpr, CEILING: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = tl.float64 if EXACT else tl.float32
    blocks = tl.cdiv(pixels, ROWS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    rows = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    pixel, here = image * pixels + rows, (rows < pixels)[:, None]
    k = tl.arange(0, K)
    dg = tl.zeros((ROWS, K), acc)
    for start in range(0, channels, COLS):
        cols = start + tl.arange(0, COLS)
        inside, factor = here & (cols < channels)[None, :], (cols < channels)[:, None] & (k < wide)[None, :]
        dy = tl.load(dout_ptr + pixel[:, None] * dout_row + cols[None, :], mask=inside, other=0.0)
        if HAS_SECOND:
            dy += tl.load(second_ptr + pixel[:, None] * second_row + cols[None, :], mask=inside, other=0.0)
        if RELU:
            out = tl.load(out_ptr + pixel[:, None] * channels + cols[None, :], mask=inside, other=0.0)
            dy = tl.where(out > 0, dy, 0.0).to(dout_ptr.dtype.element_ty)
            if CEILING is not None:
                dy = tl.where(out < CEILING, dy, 0.0).to(dout_ptr.dtype.element_ty)
        tl.store(dz_ptr + pixel[:, None] * z_row + cols[None, :], dy, mask=inside)
        up = tl.load(up_ptr + cols[:, None] * wide + k[None, :], mask=factor, other=0.0).to(acc)
        up *= tl.load(scale_ptr + cols, mask=cols < channels, other=0.0).to(acc)[:, None]
        dg += tl.dot(dy, up.to(dy.dtype), input_precision="ieee", out_dtype=acc)
    narrow = pixel[:, None] * K + k[None, :]
    part = tl.program_id(0).to(tl.int64)
    if MIX == 0:
        dh = dg.to(dout_ptr.dtype.element_ty)
    else:
        h = tl.load(h_ptr + narrow, mask=here, other=0.0)
        if MIX == 1:  # g = h diag(c)
            c = tl.load(mix_ptr + image * mix_image + k, mask=k < wide, other=0.0).to(acc)[None, :]
            g = h.to(acc) * c
            tl.store(dmix_ptr + part * wide + k, tl.sum(h.to(acc) * dg, axis=0), mask=k < wide)
            dh = (dg * c).to(h.dtype)
        else:  # g = h mix
            square = (k < wide)[:, None] & (k < wide)[None, :]
            matrix = k[:, None] * wide + k[None, :]
            mix = tl.load(mix_ptr + image * mix_image + matrix, mask=square, other=0.0).to(h.dtype)
            g = tl.dot(h, mix, input_precision="ieee", out_dtype=acc)
            narrow_dg = dg.to(h.dtype)
            dmix = tl.dot(tl.trans(h), narrow_dg, input_precision="ieee", out_dtype=acc)
            tl.store(dmix_ptr + part * wide * wide + matrix, dmix, mask=square)
            dh = tl.dot(narrow_dg, tl.trans(mix), input_precision="ieee", out_dtype=acc).to(h.dtype)
        tl.store(g_ptr + narrow, g.to(h.dtype), mask=here)
    tl.store(dh_ptr + narrow, dh, mask=here)
    tl.store(dz_ptr + pixel[:, None] * z_row + channels + k[None, :], dh, mask=here)


def _launch_epilogue(
    z: Tensor, mix: Tensor | None, up: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None,
    ceiling: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    channels, wide = up.shape
    residual = _gapless(residual)
    out, h = z.new_empty(len(z), channels), z.new_empty(len(z), z.shape[1] - channels)
    images, pixels = _images(z, mix)
    cols = _tile(128, channels)
    rows = _tile(TILE // cols, pixels)
    grid = (images * _pieces(pixels, rows) * _pieces(channels, cols),)
    wrap_triton(_epilogue_kernel)[grid](
        z, mix, up, scale, shift, residual, out, h, pixels, channels, wide, z.stride(0),
        _stride(residual), _stride(mix), MIX=_kind(mix), HAS_RESIDUAL=residual is not None, RELU=ceiling is not None,
        CEILING=_finite(ceiling), K=h.shape[1], ROWS=rows, COLS=cols, EXACT=z.dtype == torch.float64, num_warps=4,
    )  # fmt: skip
    return out, h


def _launch_epilogue_backward(
    dout: Tensor, second: Tensor | None, out: Tensor | None, h: Tensor, mix: Tensor | None, up: Tensor, scale: Tensor,
    ceiling: float | None,
) -> list[Tensor]:  # fmt: skip
    channels, wide = up.shape
    dout, second = _gapless(dout), _gapless(second)
    images, pixels = _images(h, mix)
    rows, cols = _tile(BACKWARD_ROWS, pixels), _tile(BACKWARD_COLS, channels)
    blocks = _pieces(pixels, rows)
    made = [dout.new_empty(len(h), channels + h.shape[1]), torch.empty_like(h)]
    if mix is not None:
        exact = torch.promote_types(mix.dtype, torch.float32)
        made += [torch.empty_like(h), mix.new_empty(images, blocks, *mix.shape[1:], dtype=exact)]
    dz, dh, g, parts = [*made, None, None][:4]
    wrap_triton(_epilogue_backward_kernel)[(images * blocks,)](
        dout, second, out, h, mix, up, scale, dz, dh, g, parts, pixels, channels, wide, dout.stride(0),
        _stride(second), channels + h.shape[1], _stride(mix), HAS_SECOND=second is not None,
        MIX=_kind(mix), RELU=ceiling is not None, CEILING=_finite(ceiling), K=h.shape[1], ROWS=rows, COLS=cols,
        EXACT=dout.dtype == torch.float64, num_warps=4,
        num_stages=3 if dout.element_size() == 2 else 1,  # wider elements would not fit beside each other
    )  # fmt: skip
    return made


# Operations of their own for torch.compile, which looks into them for the kernels; called directly, they cost less.
_epilogue = triton_op("metalora::epilogue", _launch_epilogue, mutates_args={})
_epilogue_backward = triton_op("metalora::epilogue_backward", _launch_epilogue_backward, mutates_args={})


def epilogue(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Compute out, (N P, O), and h, (N P, K). See `metalora.adapters.fused.ops.epilogue`; images are rows here."""
    return (_epilogue if torch.compiler.is_compiling() else _launch_epilogue)(*arguments)


def epilogue_backward(
    dout: Tensor, second: Tensor | None, out: Tensor | None, h: Tensor, mix: Tensor | None, up: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Compute the gradients of z, (N P, O + K), of its part h, (N P, K), of B = scale * up, and of ``mix``.

    See `metalora.adapters.fused.ops.epilogue_backward`; images are rows here.
    """
    launch = _epilogue_backward if torch.compiler.is_compiling() else _launch_epilogue_backward
    dz, dh, *more = launch(dout, second, out, h, mix, up, *rest)
    g, parts = more or (h, None)
    channels, wide = up.shape
    # By the library: partial sums of the kernel's own cost more than one more read of dy (pipelines/bench/LOG.md).
    return dz, dh, (dz[:, :channels].T @ g)[:, :wide], None if parts is None else parts.sum(1)


def _tile(most: int, size: int) -> int:
    """Return the side of a tile: the power of two, at least 16, that suits the size that it covers."""
    return max(16, min(most, 1 << (size - 1).bit_length()))


def _pieces(size: int, tile: int) -> int:
    return -(-size // tile)


def _kind(mix: Tensor | None) -> int:
    """Return 0 for no seeds, 1 for scales, 2 for matrices."""
    return 0 if mix is None else mix.dim() - 1


def _gapless(rows: Rows) -> Rows:
    """Return rows whose channels lie side by side, as those of a slice of channels do, and of a spread sum do not."""
    return rows if rows is None or rows.stride(-1) == 1 else rows.contiguous()


def _stride(tensor: Tensor | None) -> int:
    """Return the distance of two rows, or of the seeds of two images; their elements lie side by side."""
    assert tensor is None or tensor.stride(-1) == 1
    return 0 if tensor is None else tensor.stride(0)


def _finite(ceiling: float | None) -> float | None:
    return None if ceiling == math.inf else ceiling


def _images(rows: Tensor, mix: Tensor | None) -> tuple[int, int]:
    """Return N and P; where no seed differs from image to image, all are one."""
    images = 1 if mix is None else len(mix)
    return images, len(rows) // images
