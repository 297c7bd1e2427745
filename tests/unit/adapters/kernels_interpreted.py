"""The Triton kernels, run by Triton's interpreter, against the same operations in torch. Run by test_fused.py."""

import math

import pytest
import torch
from torch import Tensor

from metalora.adapters.fused import kernels, ops


@pytest.mark.parametrize("ceiling", [None, math.inf, 1.5])
@pytest.mark.parametrize("more", [True, False], ids=["sums", "alone"])
@pytest.mark.parametrize(("pixels", "channels", "wide"), [(130, 48, 16), (257, 320, 16), (100, 600, 32)])
def test_kernels_are_what_they_say(pixels: int, channels: int, wide: int, more: bool, ceiling: float | None) -> None:
    generator = torch.Generator().manual_seed(0)

    def image(width: int) -> Tensor:
        rows = torch.randn(pixels, width, dtype=torch.float64, generator=generator)
        return rows.view(1, 1, pixels, width).permute(0, 3, 1, 2)

    rows = ops.pixel_rows
    z, residual, dout = image(channels + wide), image(channels), image(channels)
    second = image(channels + wide)[:, :channels]
    g, up = rows(image(wide)), torch.randn(channels, wide, dtype=torch.float64, generator=generator)
    shift = up[:, 0].contiguous()
    wanted = ops.up(z, g, up, shift, residual if more else None, ceiling)
    met = torch.full_like(wanted, torch.nan)
    kernels.up(rows(met), rows(z), g, up, shift, rows(residual) if more else None, ceiling)
    torch.testing.assert_close(met, wanted)

    gradients = ops.up_backward(dout, second if more else None, None if ceiling is None else wanted, g, up, ceiling)
    dz = torch.full_like(gradients[0], torch.nan)
    others = kernels.up_backward(rows(dz), rows(dout), rows(second) if more else None, rows(wanted), g, up, ceiling)
    torch.testing.assert_close(dz[:, :channels], gradients[0][:, :channels])
    torch.testing.assert_close(others, gradients[1:])
