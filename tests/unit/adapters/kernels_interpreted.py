"""The Triton kernels, run by Triton's interpreter, against the same operations in torch. Run by test_fused.py."""

import math

import pytest
import torch
from torch import Tensor

from metalora.adapters.fused import kernels, ops


@pytest.mark.parametrize("ceiling", [None, math.inf, 1.5])
@pytest.mark.parametrize("more", [True, False], ids=["sums", "alone"])
@pytest.mark.parametrize("mixing", [True, False], ids=["mixed", "unmixed"])
@pytest.mark.parametrize(
    ("images", "pixels", "channels", "wide"), [(2, 65, 48, 16), (1, 300, 320, 16), (3, 7, 600, 32)]
)
def test_kernels_are_what_they_say(
    images: int, pixels: int, channels: int, wide: int, mixing: bool, more: bool, ceiling: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    def image(width: int) -> Tensor:
        return random(images, 1, pixels, width).permute(0, 3, 1, 2)

    rows = ops.pixel_rows
    z, residual, dout = image(channels + wide), image(channels), image(channels)
    second = image(channels + wide)[:, :channels]
    up, shift, mix = random(channels, wide), random(channels), random(images, wide, wide) if mixing else None
    out, h = ops.up(z, mix, up, shift, residual if more else None, ceiling)
    met, met_h = torch.full_like(out, torch.nan), torch.full_like(h, torch.nan)
    kernels.up(rows(met), met_h, rows(z), mix, up, shift, rows(residual) if more else None, ceiling)
    torch.testing.assert_close((met, met_h), (out, h))

    wanted = ops.up_backward(dout, second if more else None, out, h, mix, up, ceiling)
    dz = torch.full_like(wanted[0], torch.nan)
    added = rows(second) if more else None
    dh, dup, dmix = kernels.up_backward(rows(dz), rows(dout), added, rows(out), h, mix, up, ceiling)
    torch.testing.assert_close((dz, dh, dup), wanted[:3])
    if mixing:
        torch.testing.assert_close(dmix, wanted[3])
