"""What a network takes: samples encoded on the CPU, then prepared on the device.

The two are apart, so that samples are kept, and travel to the device, in their smallest form: images as bytes, a
quarter of the memory of what a network takes.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from metalora.data.images import decode


class Inputs(Protocol):
    """What a backbone takes; picklable. Images are its first kind; token ids, say, may be others."""

    def encode(self, raw: bytes, name: str, most: int) -> Tensor:
        """Make a sample's codes, on the CPU: of one shape and type for all samples.

        Args:
            raw: The sample as the data set has it: the bytes of an image file.
            name: What error messages call it.
            most: The most pixels of an image that are decoded.

        Raises:
            UserError: the sample cannot be decoded.
        """

    def prepare(self, codes: Tensor) -> Tensor:
        """Make of codes (B, ...) what the network takes, where they are."""

    def example(self, count: int) -> Tensor:
        """Return the codes of so many samples, (count, ...), to try a network with: different ones, if it is probed."""


@dataclass(frozen=True)
class ImageInputs:
    """x = (crop(image) / 255 - mean) / std, channel by channel.

    Attributes:
        crop: An RGB image of any size -> (3, H, W) uint8; picklable.
        mean: Of each channel, of values in [0, 1].
        std: Likewise.
        size: (3, H, W) of what `crop` returns.
    """

    crop: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int, int]

    def __call__(self, image: Image.Image) -> Tensor:
        """Map an image of any size and mode to (3, H, W) float32."""
        return self.prepare(self.pixels(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """Map an image of any size and mode to (3, H, W) uint8."""
        return self.crop(image if image.mode == "RGB" else image.convert("RGB"))

    def encode(self, raw: bytes, name: str, most: int) -> Tensor:
        """Decode the bytes of an image file and cut it to size, (3, H, W) uint8. See `Inputs.encode`."""
        return self.pixels(decode(raw, name, most))

    def prepare(self, codes: Tensor) -> Tensor:
        """Map pixels, (..., 3, H, W) uint8, to float32; where they are, and in their memory format."""
        mean, std = _column(self.mean, codes.device), _column(self.std, codes.device)
        return codes.float().div_(255).sub_(mean).div_(std)

    def example(self, count: int) -> Tensor:
        """Return black images, (count, 3, H, W) uint8. See `Inputs.example`."""
        return torch.zeros(count, *self.size, dtype=torch.uint8)


@functools.cache  # copying them to a GPU each time would wait for it
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)
