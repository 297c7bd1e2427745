"""The torch data set over a table."""

from collections.abc import Callable

import torch
from PIL import Image

from metalora.data.images import decode
from metalora.data.table import ImageTable, IntArray

Item = tuple[torch.Tensor, int, int, int]


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
        self._max_pixels = table.max_pixels

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
        return self._transform(decode(self._store.read(stored), self._store.name(stored), self._max_pixels))
