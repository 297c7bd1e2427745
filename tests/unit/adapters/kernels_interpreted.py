"""The Triton kernels, run by Triton's interpreter, against the same operations in torch. Run by test_fused.py."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from metalora.adapters.fused import kernels, ops


@pytest.fixture(autouse=True)
def unwritten_is_nan() -> Iterator[None]:
    """What a kernel leaves out shows: empty tensors are filled with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


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
    z, dout = image(channels + wide), image(channels) if more else image(1).expand(-1, channels, -1, -1)
    residual, second = (image(channels + wide)[:, :channels] for _ in range(2))
    up, scale, shift = random(channels, update), random(channels), random(channels)
    mix = [None, random(images, 50)[:, 7 : 7 + update], random(images, update, update)][mixing]
    out, h = ops.epilogue(z, mix, up, scale, shift, residual if more else None, ceiling)
    added = rows(residual) if more else None
    met, met_h = kernels.epilogue(rows(z), mix, up, scale, shift, added, ceiling)
    torch.testing.assert_close((met, met_h), (rows(out), h))

    dz, dh, dup, dmix = ops.epilogue_backward(dout, second if more else None, out, h, mix, up, scale, ceiling)
    added = rows(second) if more else None
    found = kernels.epilogue_backward(rows(dout), added, rows(out), h, mix, up, scale, ceiling)
    torch.testing.assert_close((found[0], found[1], scale[:, None] * found[2]), (rows(dz), dh, dup))
    torch.testing.assert_close(found[3], dmix)
