"""The inputs of a network: samples are encoded on the CPU, then prepared on the device.

The two steps are separate, so that samples are kept and sent to the device in their smallest form: images as bytes
take a quarter of the memory of a network's input.
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
    """The preprocessing of a backbone's inputs; picklable. `ImageInputs` is the first kind; token ids may be another.

    >>> class Bytes:
    ...     "The first eight bytes of a sample, as numbers."
    ...
    ...     def encode(self, raw, name, most):
    ...         return torch.tensor(list(raw[:8].ljust(8)), dtype=torch.uint8)
    ...
    ...     def prepare(self, codes):
    ...         return codes.float() / 255
    ...
    ...     def example(self, count):
    ...         return torch.arange(8 * count, dtype=torch.uint8).view(count, 8)
    >>> Bytes().prepare(Bytes().example(2)).shape
    torch.Size([2, 8])
    """

    def encode(self, raw: bytes, name: str, most: int) -> Tensor:
        """Encode a sample on the CPU; the codes of all samples have one shape and dtype.

        Args:
            raw: The sample in the data set: the bytes of an image file.
            name: Name of the sample in error messages.
            most: Largest number of pixels of an image that is decoded.

        Raises:
            UserError: the sample cannot be decoded.
        """

    def prepare(self, codes: Tensor) -> Tensor:
        """Map codes (B, ...) to the network's input, on the device of the codes."""

    def example(self, count: int) -> Tensor:
        """Return the codes of ``count`` samples, (count, ...), to try a network with; different ones to probe it."""


@dataclass(frozen=True)
class ImageInputs:
    """The preprocessing of images: x = (crop(image) / 255 - mean) / std, channel by channel.

    >>> import metalora
    >>> inputs = metalora.build_backbone("resnet20", "none").inputs
    >>> inputs(Image.new("L", (100, 60))).shape
    torch.Size([3, 28, 28])

    Attributes:
        crop: An RGB image of any size -> (3, H, W) uint8; picklable.
        mean: Mean of each channel, of values in [0, 1].
        std: Standard deviation of each channel, of values in [0, 1].
        size: (3, H, W) of the result of `crop`.
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
        """Decode an image file and bring the image to size, (3, H, W) uint8. See `Inputs.encode`."""
        return self.pixels(decode(raw, name, most))

    def prepare(self, codes: Tensor) -> Tensor:
        """Map pixels, (..., 3, H, W) uint8, to float32, on their device and in their memory format."""
        mean, std = _column(self.mean, codes.device), _column(self.std, codes.device)
        return codes.float().div_(255).sub_(mean).div_(std)

    def example(self, count: int) -> Tensor:
        """Return black images, (count, 3, H, W) uint8. See `Inputs.example`."""
        return torch.zeros(count, *self.size, dtype=torch.uint8)


@functools.cache  # copying them to a GPU each time would wait for it
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)
