"""Limits on how much is read from a file that may come from a stranger.

These are the limits that an honest file may reach, and that you may want to raise. A limit that no honest file comes
near, such as a hundred scans of a JPEG, is a constant where it is checked. A limit is checked before anything of that
size is allocated. ``METALORA_LIMITS`` changes limits by name: ``METALORA_LIMITS="image_bytes=2e9 text_bytes=1e8"``.
The number of pixels of an image is limited by the setting ``max_pixels``, since it decides what a training sees.
"""

import dataclasses
import functools
import os
from dataclasses import dataclass

from metalora.errors import UserError

VARIABLE = "METALORA_LIMITS"


@dataclass(frozen=True)
class Limits:
    """Limits on what is read from files and requests.

    Attributes:
        yaml_bytes: A YAML file, and its text with all aliases written out.
        text_bytes: A JSON file, or one line of a file of JSON lines.
        nesting: Levels of nested lists and mappings, in YAML, JSON and checkpoints.
        values: Single values of a YAML file or of a checkpoint's plain part, aliases written out.
        image_bytes: An encoded image.
        request_bytes: All images of one request to a served model, encoded.
        request_images: Number of images in one request.
        image_side: The side of a network's square input.
        name_bytes: A label, domain, split or id of a data set.
        table_bytes: A CSV file, decompressed, or the texts of a Parquet file that names image files.
        table_rows: Rows of a table that names image files.
        rows_bytes: Rows of a Parquet file in memory at a time; at least one row.
        width: Features, channels, labels, branches or seeds of an adapter, and the width of its mapping net.
        depth: Layers of a mapping net.
        pattern_seconds: Matching one regular expression of ``target_modules`` and the like against all names.
    """

    yaml_bytes: int = 2**20
    text_bytes: int = 2**24
    nesting: int = 64
    values: int = 100_000
    image_bytes: int = 2**28
    request_bytes: int = 2**28
    request_images: int = 4096
    image_side: int = 8192
    name_bytes: int = 1024
    table_bytes: int = 2**29
    table_rows: int = 2**23
    rows_bytes: int = 2**28
    width: int = 2**20
    depth: int = 256
    pattern_seconds: float = 1.0


def limits() -> Limits:
    """Return the present limits.

    Raises:
        UserError: ``METALORA_LIMITS`` has an unknown name or a number out of range.
    """
    return _read(os.environ.get(VARIABLE, ""))


@functools.cache
def _read(text: str) -> Limits:
    known = {field.name: field.type for field in dataclasses.fields(Limits)}
    changes: dict[str, int | float] = {}
    for pair in text.replace(",", " ").split():
        name, _, number = pair.partition("=")
        if name not in known:
            raise UserError(f"{VARIABLE}: unknown limit {name!r} (limits: {', '.join(known)})")
        least, most = (1, 2**60) if known[name] is int else (0.001, 1e6)
        try:
            value = float(number)
        except ValueError:
            value = 0
        if not least <= value <= most:
            raise UserError(f"{VARIABLE}: {name} must be a number from {least:g} to {most:g}, got {number!r}")
        changes[name] = int(value) if known[name] is int else value
    return Limits(**changes)  # type: ignore[arg-type]
