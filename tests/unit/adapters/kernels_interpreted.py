"""The Triton kernels, run by Triton's interpreter, against the same operations in torch. Run by test_fused.py."""

import math

import pytest
import torch
from torch import Tensor

from metalora.adapters.fused import kernels, ops


@pytest.mark.parametrize("ceiling", [None, math.inf, 1.5])
@pytest.mark.parametrize("more", [True, False], ids=["sums", "alone"])
@pytest.mark.parametrize("mixing", [0, 1, 2], ids=["unmixed", "scales", "matrices"])
@pytest.mark.parametrize(
    ("images", "pixels", "channels", "update"), [(2, 65, 48, 9), (1, 300, 320, 16), (3, 7, 600, 32)]
)
def test_kernels_are_what_they_say(
    images: int, pixels: int, channels: int, update: int, mixing: int, more: bool, ceiling: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    def image(width: int) -> Tensor:
        return random(images, 1, pixels, width).permute(0, 3, 1, 2)

    rows, wide = ops.pixel_rows, ops.padded(update)
    z, residual, dout = image(channels + wide), image(channels), image(channels)
    second = image(channels + wide)[:, :channels]
    up, scale, shift = random(channels, update), random(channels), random(channels)
    mix = [None, random(images, 50)[:, 7 : 7 + update], random(images, update, update)][mixing]
    out, h = ops.up(z, mix, up, scale, shift, residual if more else None, ceiling)
    met, met_h = torch.full_like(out, torch.nan), torch.full_like(h, torch.nan)
    kernels.up(rows(met), met_h, rows(z), mix, up, scale, shift, rows(residual) if more else None, ceiling)
    torch.testing.assert_close((met, met_h), (out, h))

    dz, dh, dup, dmix = ops.up_backward(dout, second if more else None, out, h, mix, up, scale, ceiling)
    met = torch.full_like(dz, torch.nan)
    added = rows(second) if more else None
    found = kernels.up_backward(rows(met), rows(dout), added, rows(out), h, mix, up, scale, ceiling)
    torch.testing.assert_close((met, found[0], scale[:, None] * found[1]), (dz, dh, dup))
    torch.testing.assert_close(found[2], dmix)
