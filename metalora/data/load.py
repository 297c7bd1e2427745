"""From the setting ``data`` to a checked table."""

import os
from dataclasses import replace
from pathlib import Path

from metalora.config import DataConfig
from metalora.data.domains import check, exclude_domains, hold_out
from metalora.data.images import extensions
from metalora.data.sources.embedded import embedded_file
from metalora.data.sources.folders import load_tree
from metalora.data.sources.parquet import load_parquet
from metalora.data.table import Table
from metalora.data.verify import verify
from metalora.errors import UserError
from metalora.registry import nearest

_WANTED = (
    "wanted: embedded, a folder root/domain/class/image, or Parquet: a .parquet file, a folder of such "
    "files, or a URI (s3://, gs://, file://)"
)


def load_table(config: DataConfig) -> Table:
    """Read, verify and check the data set that a config names.

    The same config and files give the same table in every process, and processes may call this at
    once: what they share in the cache is written atomically.

    Raises:
        UserError: no such source, or data that cannot be trained and tested on; the message names it.
    """
    if config.on_bad_image == "skip" and not config.verify_images:
        raise UserError("on_bad_image = skip needs verify_images = true: bad images are found by verifying")
    table = replace(_open_source(config), max_pixels=config.max_pixels)
    table = hold_out(table, config.holdout_domains)
    if config.verify_images:
        table = verify(table, config.on_bad_image)
    check(table, config.allow_different_labels)
    return table


def _open_source(config: DataConfig) -> Table:
    if config.data == "embedded":
        return exclude_domains(load_parquet(str(embedded_file())), config.exclude_domains)
    if "://" in config.data or _is_parquet(Path(config.data)):
        return exclude_domains(load_parquet(config.data), config.exclude_domains)
    root = Path(config.data)
    return load_tree(root, config.val_fraction, config.test_fraction, config.exclude_domains)


def _is_parquet(path: Path) -> bool:
    """Tell Parquet, a file or a folder with such files, from a folder of another kind.

    Raises:
        UserError: nothing there, a file of another kind, or a folder that cannot be read.
    """
    try:
        if path.is_dir():
            return any(path.glob("*.parquet")) or _first_is_parquet(path)
        if path.is_file() and path.suffix == ".parquet":
            return True
    except OSError as error:
        raise UserError(f"cannot read data {str(path)!r}: {error.strerror}") from None
    met = "is not a .parquet file" if path.exists() else "does not exist"
    raise UserError(f"data {str(path)!r} {met}{nearest(path.name, ['embedded'])}; {_WANTED}")


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
