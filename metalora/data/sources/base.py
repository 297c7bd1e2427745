"""What a data source is: where samples, their labels and their domains come from."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from metalora.config import DataConfig
from metalora.data.images import extensions
from metalora.data.table import Table
from metalora.errors import UserError
from metalora.registry import Registry


class DataSource(ABC):
    """Where the setting ``data`` may lead.

    Attributes:
        name: The name that it is registered by.
        wanted: How the setting is written for it, in error messages.
    """

    name: str
    wanted: ClassVar[str]

    @abstractmethod
    def opens(self, data: str) -> bool:
        """Tell whether the setting means this source."""

    @abstractmethod
    def open(self, config: DataConfig) -> Table:
        """Read the table, without the domains that are left out.

        Raises:
            UserError: there is nothing that can be read; the message names it.
        """


SOURCES: Registry[DataSource] = Registry("data source")


def is_parquet(path: Path) -> bool:
    """Tell Parquet, a file or a folder with such files, from anything else.

    Raises:
        UserError: a folder that cannot be read.
    """
    try:
        if path.is_dir():
            return any(path.glob("*.parquet")) or _first_is_parquet(path)
        return path.is_file() and path.suffix == ".parquet"
    except OSError as error:
        raise UserError(f"cannot read data {str(path)!r}: {error.strerror}") from None


def _first_is_parquet(folder: Path) -> bool:
    """Tell whether the first file below a folder, that is an image or Parquet, is Parquet."""
    for _, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        ends = {Path(name).suffix.lower() for name in files if not name.startswith(".")}
        if ends & extensions():
            return False
        if ".parquet" in ends:
            return True
    return False
