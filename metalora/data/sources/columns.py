"""Read the columns of a Parquet file, whatever program wrote it, as images and texts.

Accepted are the types that pandas, Polars, Spark, Arrow and Hugging Face's datasets write. Text may be a string of any
kind, dictionary (category), binary that is UTF-8, or integer. Images may be binary of any kind, or Hugging Face's
struct of ``bytes`` and ``path``. Integers that have names in Hugging Face's metadata (`ClassLabel`) become these names.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from metalora.data.names import composed, printable
from metalora.errors import UserError
from metalora.limits import limits
from metalora.reading import short

_MOST_METADATA = 2**23  # bytes; parsed, they take a hundred times as much
_WANTED = (
    "wanted: image (encoded bytes), or path (of an image file), label, domain (strings), split (train, val or test) "
    "and, if you like, id (string or integer)"
)


def check_columns(schema: Any, told: Mapping[str, str], file: str) -> list[str]:
    """Return the columns to read, after checking that each exists, only once, and with an accepted type.

    Args:
        schema: The file's Arrow schema.
        told: Values that the path gives for columns that do not exist.
        file: Name of the file in error messages.

    Raises:
        UserError: a column is missing, occurs twice, or has another type.
    """
    present = [name for name in _ACCEPTED if name in schema.names]
    for name in _ACCEPTED:
        if name not in present and name not in told and name != "id":
            raise UserError(f"{file} has no column {name!r} (columns: {listed(schema.names)}); {_WANTED}")
    for name in present:
        if schema.names.count(name) > 1:
            raise UserError(f"{file} has {schema.names.count(name)} columns {name!r}; wanted: one")
        check_type(schema, name, name, file)
    return present


def check_type(schema: Any, name: str, meaning: str, file: str) -> None:
    """Check that a column has a type that its meaning (image, path, label, ...) is accepted in.

    Raises:
        UserError: it has another type.
    """
    accepts, wanted = _ACCEPTED.get(meaning, (_is_text, _TEXT))
    found = schema.field(name).type
    if not accepts(_plain_type(found)):
        raise UserError(f"{file}: column {name!r} is of type {found}, {wanted} wanted")


def has_integers(schema: Any, name: str) -> bool:
    """Tell whether there is one column of that name, and it holds integers."""
    return schema.names.count(name) == 1 and bool(pa.types.is_integer(_plain_type(schema.field(name).type)))


def is_hugging_face(schema: Any) -> bool:
    """Tell whether a file was written by Hugging Face's datasets, which have no domains."""
    struct = "image" in schema.names and pa.types.is_struct(schema.field(schema.names.index("image")).type)
    return struct or b"huggingface" in (schema.metadata or {})


def hugging_face_names(schema: Any) -> dict[str, dict[int, str]]:
    """Return the class names of each column that is a `ClassLabel` in Hugging Face's metadata.

    Raises:
        ValueError: the metadata or a name is longer than allowed.
    """
    said = (schema.metadata or {}).get(b"huggingface", b"null")
    if len(said) > _MOST_METADATA:
        raise ValueError(f"its metadata 'huggingface' have {len(said)} bytes; at most {_MOST_METADATA} are read")
    try:
        features = json.loads(said)["info"]["features"].items()
    except (KeyError, TypeError, AttributeError, ValueError):  # none, or not of that form: then there are no names
        return {}
    named = {name: feature.get("names") for name, feature in features if isinstance(feature, dict)}
    known = {name: list(map(str, names)) for name, names in named.items() if isinstance(names, list)}
    for name in (name for names in known.values() for name in names):
        if len(name.encode(errors="replace")) > limits().name_bytes:
            raise ValueError(f"the class name {short(name)} has more than name_bytes = {limits().name_bytes} bytes")
    return {name: dict(enumerate(names)) for name, names in known.items()}


def read_images(column: Any, file: str, first: int) -> Any:
    """Return a column of encoded images as large_binary; its first image is row ``first`` of the file.

    Raises:
        UserError: an image is null, or is a path without the image's bytes.
    """
    column = _plain(column)
    paths = pc.struct_field(column, "path") if _has(column.type, "path") else None
    if _has(column.type, "bytes"):
        column = pc.struct_field(column, "bytes")
    if column.null_count:
        row = column.is_null().index(True).as_py()
        path = paths[row].as_py() if paths is not None else None
        met = "is null; a value is wanted" if path is None else f"is the path {short(path)} without the image's bytes"
        raise UserError(f"{file} row {first + row}: column 'image' {met}")
    return column.cast(pa.large_binary())


def read_texts(
    column: Any, name: str, file: str, first: int, names: Mapping[int, str] | None = None, as_written: bool = False
) -> list[str]:
    """Return the values of a column as strings, in NFC.

    Args:
        column: The values.
        name: The column's name.
        file: What the error message calls the file.
        first: Row of the first value in the file.
        names: Names of the column's integers, if they are known.
        as_written: Whether the values stay as they are written, as ids and paths do.

    Raises:
        UserError: a value is null, not UTF-8, longer than `limits().name_bytes`, or an integer without a name.
    """
    column = _plain(column)
    if not pa.types.is_integer(column.type):
        column = column.cast(pa.large_binary())
        most = limits().name_bytes
        longer = pc.greater(pc.binary_length(column), most).index(True).as_py()
        if longer >= 0:
            raise UserError(f"{file} row {first + longer}: column {name!r} holds more than name_bytes = {most} bytes")
    texts = []
    for row, value in enumerate(column.to_pylist(), first):
        if value is None:
            raise UserError(f"{file} row {row}: column {name!r} is null; a value is wanted")
        texts.append(_text(value, names, f"{file} row {row}: column {name!r}"))
    return texts if as_written else [composed(text) for text in texts]


def listed(names: list[str]) -> str:
    """Return the names of columns for error messages."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(printable(name)[:80] for name in names[:20]) + more


def accepted(names: Mapping[int, str]) -> str:
    """Return the integers that have names, for error messages."""
    least, most = min(names, default=0), max(names, default=-1)
    return f"{least} to {most}" if len(names) == most - least + 1 else f"one of the {len(names)} that have names"


def _text(value: int | bytes, names: Mapping[int, str] | None, place: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise UserError(f"{place} holds {short(value)}, which is not UTF-8; wanted: text in UTF-8") from None
    if names is None:
        return str(value)
    if value not in names:
        raise UserError(f"{place} is {value}, which has no name; wanted: {accepted(names)}")
    return names[value]


def _plain(column: Any) -> Any:
    """Return a column without extension type and dictionary."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _plain_type(found: Any) -> Any:
    found = found.storage_type if isinstance(found, pa.BaseExtensionType) else found
    return found.value_type if pa.types.is_dictionary(found) else found


def _has(found: Any, field: str) -> bool:
    return bool(pa.types.is_struct(found)) and found.get_field_index(field) >= 0


def _is_bytes(found: Any) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(kind(found) for kind in kinds)


def _is_image(found: Any) -> bool:
    return _is_bytes(found.field("bytes").type if _has(found, "bytes") else found)


def _is_text(found: Any) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer)
    return _is_bytes(found) or any(kind(found) for kind in kinds)


_TEXT = "string or integer"
_ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image": (_is_image, "binary (encoded bytes)"),
    "label": (_is_text, _TEXT),
    "domain": (_is_text, _TEXT),
    "split": (_is_text, "string (train, val or test)"),
    "id": (_is_text, _TEXT),
}
