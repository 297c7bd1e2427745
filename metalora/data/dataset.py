"""The torch data set over a table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metalora.data.table import IntArray, Table


class Batch(NamedTuple):
    """Samples side by side; a single sample is a `Batch` without the leading dimension.

    Attributes:
        codes: (B, ...), the samples as the backbone's `Inputs` encode them.
        labels: (B,) indices into the table's ``labels``.
        domains: (B,) indices into the table's ``domains``.
        rows: (B,) rows of the table.
    """

    codes: Tensor
    labels: Tensor
    domains: Tensor
    rows: Tensor


class SampleDataset(torch.utils.data.Dataset[Any]):
    """Some rows of a table, encoded when they are read.

    Item i is a `Batch` of one sample: its codes, its indices into the table's ``labels`` and ``domains``, and its row
    of the table, ``rows[i]``. A pickle holds the store and these rows only, so that worker processes get it cheaply.

    Args:
        table: The samples.
        rows: (n,) rows of the table.
        encode: Makes the codes of a sample from its bytes and name; must be picklable if there are worker processes.
    """

    def __init__(self, table: Table, rows: IntArray, encode: Callable[[bytes, str], Tensor]) -> None:
        self._store = table.store
        self._rows = rows
        self._store_rows = table.store_rows[rows]
        self._label = table.label[rows]
        self._domain = table.domain[rows]
        self._encode = encode

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        """Return one sample: its codes, and three integers.

        Raises:
            UserError: the sample cannot be read or decoded; the message names it.
        """
        stored = int(self._store_rows[index])
        codes = self._encode(self._store.read(stored), self._store.name(stored))
        label, domain, row = self._label[index], self._domain[index], self._rows[index]
        return Batch(codes, int(label), int(domain), int(row))  # type: ignore[arg-type]


class KeptDataset(torch.utils.data.Dataset[Any]):
    """Some rows of a table whose codes are in memory; items are those of `SampleDataset`.

    Args:
        table: The samples.
        rows: (n,) rows of the table.
        codes: (N, ...) codes of all rows of the table.
    """

    def __init__(self, table: Table, rows: IntArray, codes: npt.NDArray[np.generic]) -> None:
        self._table = table
        self._rows = rows
        self._codes = codes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        """Return one sample: its codes, and three integers."""
        row = self._rows[index]
        codes = torch.from_numpy(self._codes[row].copy())
        return Batch(codes, int(self._table.label[row]), int(self._table.domain[row]), int(row))  # type: ignore[arg-type]
