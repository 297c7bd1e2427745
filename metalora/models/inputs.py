"""What a network's weights expect of an image: bytes of a certain size, then numbers of a certain scale.

The two are apart, so that images are kept, and travel to the device, as bytes: a quarter of the memory.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """x = (crop(image) / 255 - mean) / std, channel by channel.

    Attributes:
        crop: An RGB image of any size -> (3, H, W) uint8; picklable.
        mean: Of each channel, of values in [0, 1].
        std: Likewise.
    """

    crop: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """Map an image of any size and mode to (3, H, W) float32."""
        return self.scale(self.pixels(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """Map an image of any size and mode to (3, H, W) uint8."""
        return self.crop(image if image.mode == "RGB" else image.convert("RGB"))

    def scale(self, pixels: Tensor) -> Tensor:
        """Map pixels, (..., 3, H, W) uint8, to float32; where they are, and in their memory format."""
        mean, std = _column(self.mean, pixels.device), _column(self.std, pixels.device)
        return pixels.float().div_(255).sub_(mean).div_(std)


@functools.cache  # copying them to a GPU each time would wait for it
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)
