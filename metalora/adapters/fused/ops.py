"""The fused adapted convolution and its gradients.

    out = act(conv(x, W) + up @ mix^T-modulated conv(x, down) + shift + residual)

With the frozen batch norm's scale a and shift folded into W and up, this is act(bn(adapted layer(x)) + residual).

Passes over activations, counted in reads and writes of a whole one, for a frozen convolution, batch norm, ReLU: x, z,
z, out forward; dout, out, dz, dz, dx backward. The update adds one read of x, by the gradient of ``down``: its rows
are stacked on W, so that one convolution makes (y, h) and, backward, takes (dy, dh); everything else rides on passes
that are made anyway.

Shapes: N images of P pixels, O output channels, M update channels, K those padded, I input channels. Seeds
("mix") are `Format.mixing`'s: scales, (N, M), or matrices, (N, M, M); N may be 1; None changes nothing.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def epilogue(
    z: Tensor, mix: Tensor | None, up: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None,
    ceiling: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute out = act(y + (scale * up) mix^T h + shift + residual), (N, O, H, W), and h as rows, (N P, K).

    Args:
        z: y and h side by side, (N, O + K, H, W).
        mix: Seeds.
        up: (O, M).
        scale: (O,).
        shift: (O,).
        residual: (N, O, H, W), or None.
        ceiling: act(y) = min(max(y, 0), ceiling), for ReLU infinity; None: act(y) = y.
    """
    rows, added = pixel_rows(z), None if residual is None else pixel_rows(residual)
    if z.is_cuda:
        from metalora.adapters.fused import kernels

        out, h = kernels.epilogue(rows, mix, up, scale, shift, added, ceiling)
        return as_image(out, z), h
    channels, wide = up.shape
    y, h = rows[:, :channels], rows[:, channels:].clone()
    y = torch.addmm(y, _mixed(h[:, :wide], mix), _factor(up, scale, z.dtype).T).add_(shift)
    if added is not None:
        y.add_(added)
    return as_image(y if ceiling is None else y.clamp_(0, ceiling), z), h


def epilogue_backward(
    dout: Tensor, second: Tensor | None, out: Tensor | None, h: Tensor, mix: Tensor | None, up: Tensor,
    scale: Tensor, ceiling: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Compute the gradients of z, of its part h, of ``up`` and of ``mix``.

    Args:
        dout: The gradient of out, (N, O, H, W).
        second: A second gradient to add to ``dout``, (N, O, H, W), or None.
        out: The output of `epilogue`, (N, O, H, W); may be None if ``ceiling`` is None.
        h: The h that `epilogue` returned.
        mix: As for `epilogue`.
        up: (O, M).
        scale: (O,).
        ceiling: As for `epilogue`.

    Returns:
        Tensors of shape (N, O + K, H, W); its last K channels again, as rows, (N P, K); (O, M); mix's shape, or None.
    """
    if dout.is_cuda:
        from metalora.adapters.fused import kernels

        more, act = (None if image is None else pixel_rows(image) for image in (second, out))
        dz, dh, dfactor, dmix = kernels.epilogue_backward(pixel_rows(dout), more, act, h, mix, up, scale, ceiling)
        return as_image(dz, dout), dh, scale[:, None] * dfactor, dmix
    image = dout if second is None else dout + second
    dy = pixel_rows(image if out is None or ceiling is None else image * ((out > 0) & (out < ceiling)))
    wide, padding = up.shape[1], h.shape[1] - up.shape[1]
    h = h[:, :wide]
    dh, dfactor, dmix = dy @ _factor(up, scale, dy.dtype), dy.T @ _mixed(h, mix), None
    if mix is not None:
        by_image = h.view(len(mix), -1, wide), dh.view(len(mix), -1, wide)
        dmix = (by_image[0] * by_image[1]).sum(1) if mix.dim() == 2 else by_image[0].transpose(1, 2) @ by_image[1]
        dh = _mixed(dh, mix if mix.dim() == 2 else mix.transpose(1, 2))
    dh = F.pad(dh, (0, padding))
    return as_image(torch.cat([dy, dh], dim=1), dout), dh, scale[:, None] * dfactor, dmix


def _factor(up: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (scale[:, None] * up).to(dtype)


def refusal(device: torch.device) -> str | None:
    """Return the reason why the kernels do not run on a device, or None. Triton and a C compiler build them there."""
    z = torch.ones(1, 32, 1, 1, device=device, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    ones = torch.ones(16, device=device)
    try:
        epilogue(z, None, torch.ones(16, 16, device=device), ones, ones, None, None)
    except Exception as error:  # no Triton, no compiler, a GPU too old: each has an error of its own
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


def padded(channels: int) -> int:
    """Return the padded number K of update channels that a kernel takes: the next power of two, at least 16."""
    return max(16, 1 << (channels - 1).bit_length())


def pixel_rows(image: Tensor) -> Tensor:
    """View images (N, C, H, W) as rows (N H W, C); images that are not channels_last are copied."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def as_image(rows: Tensor, like: Tensor) -> Tensor:
    """View rows (N H W, C) as channels_last images, (N, C, H, W), of the size of ``like``."""
    n, _, height, width = like.shape
    image = rows.view(n, height, width, -1).permute(0, 3, 1, 2)
    return image.data  # no view, as far as autograd knows: what follows may work in place


class FusedConv2d(torch.autograd.Function):
    """out = act(conv(x, W) + (scale * up) mix^T conv(x, down) + shift + residual), channels_last."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        stacked: Tensor,
        down: Tensor,
        mix: Tensor | None,
        up: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        ceiling: float | None,
        geometry: tuple[list[int], list[int], list[int]],
        outputs: int,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute out, (N, O, H', W').

        Args:
            ctx: Autograd's context.
            x: (N, I, H, W).
            stacked: The frozen weight W, ``down``, and zeros, one below the other, (O + K, I, k, k).
            down: (M, I, k, k), for its gradient.
            mix: Seeds.
            up: (O, M, 1, 1).
            scale: (O,).
            shift: (O,).
            residual: (N, O, H', W'), or None.
            ceiling: As for `epilogue`.
            geometry: Stride, padding and dilation.
            outputs: 2 to return out twice, so that two readers give two separate gradients; else 1.
        """
        z = torch.conv2d(x, stacked, None, *geometry)
        out, h = epilogue(z, mix, up.flatten(1), scale, shift, residual, ceiling)
        ctx.save_for_backward(x, stacked, mix, up, scale, None if ceiling is None else out, h)
        ctx.geometry, ctx.ceiling, ctx.has_residual = geometry, ceiling, residual is not None
        # Strides are read here: if the backward pass asked for one, torch.compile would make all gradients contiguous.
        ctx.down, ctx.up_stride = (down.shape, down.stride(), down.dtype), up.stride()
        ctx.set_materialize_grads(False)
        return (out, out.view_as(out)) if outputs == 2 else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *douts: Tensor | None) -> Any:
        """Compute the gradients of x, down, mix, up and residual."""
        dout, second = [*(d for d in douts if d is not None), None][:2]
        assert dout is not None
        x, stacked, mix, up, scale, out, h = ctx.saved_tensors
        channels, wide = up.shape[:2]
        dz, dh, dup, dmix = epilogue_backward(dout, second, out, h, mix, up.flatten(1), scale, ctx.ceiling)
        ddown = _conv_gradient(as_image(dh, dz), x, stacked[channels:], ctx.geometry, weight=True)
        shape, stride, dtype = ctx.down
        ddown = _laid_out(ddown[:wide].to(dtype), shape, stride)
        dx = _conv_gradient(dz, x, stacked, ctx.geometry, weight=False) if ctx.needs_input_grad[0] else None
        dresidual = dz[:, :channels] if ctx.has_residual else None
        dup = _laid_out(dup, up.shape, ctx.up_stride)
        return dx, None, ddown, dmix, dup, None, None, dresidual, None, None, None


def _mixed(h: Tensor, mix: Tensor | None) -> Tensor:
    """Apply each image's seed to its pixels' channels, rows (N P, M)."""
    if mix is None:
        return h
    by_image, mix = h.view(len(mix), -1, h.shape[1]), mix.to(h.dtype)
    return (by_image * mix[:, None] if mix.dim() == 2 else by_image @ mix).flatten(0, 1)


def _laid_out(gradient: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """Give the gradient of a 1x1 kernel its parameter's strides: those of sides of 1 are free, but DDP compares all."""
    return gradient.as_strided(shape, stride) if shape[2:] == (1, 1) else gradient


def _conv_gradient(dz: Tensor, x: Tensor, kernel: Tensor, geometry: Any, weight: bool) -> Tensor:
    stride, padding, dilation = geometry
    dx, dkernel, _ = torch.ops.aten.convolution_backward(
        dz, x, kernel, None, stride, padding, dilation, False, [0, 0], 1, [not weight, weight, False]
    )
    return dkernel if weight else dx  # type: ignore[no-any-return]
