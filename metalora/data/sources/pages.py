"""Read the page headers of a Parquet file, so that the size of each page is known before it is decompressed.

A page is decompressed as a whole, and pyarrow trusts its header; the sums in the footer may be wrong. Headers are
structs of Thrift's compact protocol (https://github.com/apache/parquet-format, ``PageHeader``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HEADER, _LARGEST_HEADER = 2**10, 2**24  # bytes read at first, and at most: there may be statistics in it
_TYPE, _SIZE, _COMPRESSED_SIZE, _DATA, _DATA_V2 = 1, 2, 3, 5, 8  # fields of a page's header
_VALUES = 1  # field of each of the three headers within
_ENCODING, _ENCODING_V2 = 2, 4  # fields of the headers of data
_DICTIONARY_PAGE = 2
_DELTA_BYTE_ARRAY = 7  # an encoding: a value begins with part of the one before
_STRUCT = 12


@dataclass(frozen=True)
class Page:
    """The facts in the header of a page.

    Attributes:
        size: Number of bytes, decompressed.
        values: Number of values.
        repeats: Whether the page may give values as large as itself many times: a dictionary, whose values later pages
            refer to, or values that share their beginning.
    """

    size: int
    values: int
    repeats: bool


def read_pages(handle: Any, chunk: Any) -> Iterator[Page]:
    """Yield the pages of a column chunk.

    Args:
        handle: The file, a `pyarrow.NativeFile`.
        chunk: The `pyarrow.parquet.ColumnChunkMetaData`.

    Raises:
        ValueError: the bytes in a header's place are no header.
    """
    place, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
    if chunk.has_dictionary_page and dictionary is not None and 0 < dictionary < place:
        place = dictionary
    end = place + chunk.total_compressed_size
    while place < end:
        header, length = _read_header(handle, place)
        if header[_COMPRESSED_SIZE] < 0 or header[_SIZE] < 0:
            raise ValueError("a page has a negative size")
        data, data_v2 = header.get(_DATA, {}), header.get(_DATA_V2, {})
        encodings = data.get(_ENCODING), data_v2.get(_ENCODING_V2)
        repeats = header[_TYPE] == _DICTIONARY_PAGE or _DELTA_BYTE_ARRAY in encodings
        yield Page(header[_SIZE], data.get(_VALUES, data_v2.get(_VALUES, 0)), repeats)
        place += length + header[_COMPRESSED_SIZE]


def _read_header(handle: Any, place: int) -> tuple[dict[int, Any], int]:
    """Return a header's fields by their numbers, and its length."""
    size = _HEADER
    while True:
        data = handle.read_at(size, place)
        try:
            return _struct(data, 0)
        except IndexError:
            if len(data) < size or size >= _LARGEST_HEADER:
                raise ValueError("a page's header has no end") from None
            size *= 16


def _struct(data: bytes, place: int) -> tuple[dict[int, Any], int]:
    fields: dict[int, Any] = {}
    number = 0
    while head := data[place]:
        place += 1
        if head >> 4:
            number += head >> 4
        else:
            number, place = _integer(data, place)
        fields[number], place = _value(data, place, head & 15)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false, which take no byte
        return kind == 1, place
    if kind in (4, 5, 6):
        return _integer(data, place)
    if kind == 8:  # bytes, of statistics
        length, place = _varint(data, place)
        return None, place + length
    if kind == _STRUCT:
        return _struct(data, place)
    raise ValueError("a page's header is of another form")


def _integer(data: bytes, place: int) -> tuple[int, int]:
    number, place = _varint(data, place)
    return number >> 1 ^ -(number & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return number, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of a page's header has no end")
