"""From the setting ``data`` to a checked table."""

from dataclasses import replace
from pathlib import Path

from metalora.config import DataConfig
from metalora.data.domains import check, hold_out
from metalora.data.sources import SOURCES
from metalora.data.sources.image_files import refuse_missing
from metalora.data.table import Table
from metalora.data.verify import Keeper, verify
from metalora.errors import UserError, given_as
from metalora.missing import is_missing, no_such_path


def load_table(config: DataConfig) -> Table:
    """Read, verify and check the data set that a config names.

    The same config and files give the same table in every process, and processes may call this at
    once: what they share in the cache is written atomically.

    Raises:
        UserError: no such source, or data that cannot be trained and tested on; the message names it.
    """
    return verify_table(open_table(config), config)


def open_table(config: DataConfig) -> Table:
    """Read the data set that a config names, without looking at its images yet. See `load_table`."""
    table = find_table(config)
    refuse_missing(table.missing)
    return table


def find_table(config: DataConfig) -> Table:
    """Read the data set that a config names, though files that it names may be missing. See `open_table`."""
    if config.on_bad_image == "skip" and not config.verify_images:
        raise UserError("on_bad_image = skip needs verify_images = true: bad images are found by verifying"
                        f"{given_as('on_bad_image', 'verify_images')}")  # fmt: skip
    return hold_out(replace(_open(config), max_pixels=config.max_pixels), config.holdout_domains)


def verify_table(table: Table, config: DataConfig, keeper: Keeper | None = None) -> Table:
    """Decode every image of a table once, unless that was done before, and check the table. See `load_table`.

    Args:
        table: As `open_table` returned it.
        config: Its settings.
        keeper: Keeps what is decoded.
    """
    if config.verify_images:
        table = verify(table, config.on_bad_image, keeper)
    check(table, config.allow_different_labels)
    return table


def _open(config: DataConfig) -> Table:
    path = Path(config.data)
    if "://" not in config.data and config.data != "embedded" and is_missing(path):
        raise UserError(f"{no_such_path(path, 'data', ['embedded'])}{given_as('data')}")
    for name in SOURCES:
        source = SOURCES.make(name)
        if source.opens(config.data):
            return source.open(config)
    met = "is no .parquet, .csv or .tsv file" if path.exists() else "does not exist"
    wanted = ", or ".join(
        [", ".join(SOURCES.get(name).wanted for name in list(SOURCES)[:-1]), SOURCES.get(list(SOURCES)[-1]).wanted]
    )
    raise UserError(f"data {str(path)!r} {met}; wanted: {wanted}{given_as('data')}")
