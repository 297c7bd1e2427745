"""Encoded bytes to RGB images, and the torch data set over a table."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from metalora.data.table import ImageTable, IntArray
from metalora.errors import UserError

Item = tuple[torch.Tensor, int, int, int]


def decode(data: bytes, name: str) -> Image.Image:
    """Return an encoded image as RGB; what is transparent becomes white, 16 bits become 8.

    Args:
        data: The bytes of a file of any format that Pillow reads. Of an animation the first frame counts.
        name: What the error message calls it.

    Raises:
        UserError: not an image, truncated, or so large that Pillow takes it for a bomb.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _to_rgb(image)
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        reason = "it is empty" if not data else " ".join(str(error).split()) or type(error).__name__
        # Pillow names the BytesIO object, address included, when it knows no format
        reason = "no image format" if "BytesIO" in reason else reason
        raise UserError(f"cannot decode image {name}: {reason}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 where 65535 is white
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


class ImageDataset(torch.utils.data.Dataset[Item]):
    """Some rows of a table, decoded when asked for.

    Item i is ``(image, label, domain, row)``: the transform of the image, two indices into the
    table's ``labels`` and ``domains``, and the table's row, ``rows[i]``. Only the store and the rows
    asked for are pickled, so it is cheap to hand to worker processes.

    Args:
        table: The images.
        rows: (n,) rows of the table.
        transform: Makes a tensor of an RGB image; picklable if there are worker processes. None if the images are at
            hand already: then nothing is decoded, and an item's image is empty.
    """

    def __init__(
        self,
        table: ImageTable,
        rows: IntArray,
        transform: Callable[[Image.Image], torch.Tensor] | None,
    ) -> None:
        self._store = table.store
        self._rows = rows
        self._store_rows = table.store_rows[rows]
        self._label = table.label[rows]
        self._domain = table.domain[rows]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item:
        """Return ``(image, label, domain, row)``.

        Raises:
            UserError: the image cannot be read or decoded; it is named.
        """
        label, domain, row = self._label[index], self._domain[index], self._rows[index]
        return self._image(index), int(label), int(domain), int(row)

    def _image(self, index: int) -> torch.Tensor:
        if self._transform is None:
            return torch.empty(0)
        stored = int(self._store_rows[index])
        return self._transform(decode(self._store.read(stored), self._store.name(stored)))
