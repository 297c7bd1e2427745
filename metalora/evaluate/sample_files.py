"""Parquet files with one row per sample, which a training writes and other commands read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metalora.data.sources.parquet_files import read_batches
from metalora.files import atomic_file
from metalora.limits import limits
from metalora.reading import gate, short

Array = np.ndarray[Any, np.dtype[Any]]
Form = Literal["text", "number", "truth", "vector"]

_EXPANSION = 100  # what is read of a file, to its own size
_WANTED = {"text": "string", "number": "float32", "truth": "bool", "vector": "a list of float32, each as long"}


def write_samples(path: Path, columns: Mapping[str, Sequence[str] | Array]) -> None:
    """Write columns of N samples to Parquet.

    Args:
        path: The file; it is replaced as a whole, or not at all.
        columns: By name N texts, N float32, N booleans, or vectors (N, S).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    made: dict[str, Any] = {}
    for name, values in columns.items():
        if not isinstance(values, np.ndarray):
            made[name] = pa.array(values, pa.string())
        elif values.ndim == 2:
            flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
            made[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        else:
            made[name] = pa.array(values if values.dtype == bool else values.astype(np.float32))
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(made), temporary, write_page_checksum=True)


def read_samples(path: Path, forms: Mapping[str, Form], what: str) -> dict[str, Any]:
    """Read columns of a file that `write_samples` wrote; other columns are not read.

    Args:
        path: The file.
        forms: The columns and what each holds.
        what: Name of the file in error messages.

    Returns:
        By name a list of texts, or an array (N,) or (N, S).

    Raises:
        UserError: the file does not exist, is of another kind, has columns of other types, a null, vectors of several
            sizes or no rows, or has far more rows than its bytes can hold.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with gate(what):
        if not path.is_file():
            raise ValueError("it is no file")
        with pa.OSFile(str(path)) as handle:
            reader = pq.ParquetFile(handle, page_checksum_verification=True)
            _check_columns(reader.schema_arrow, forms)
            size, batches = handle.size(), []
            room = max(limits().rows_bytes, _EXPANSION * size)
            for batch in read_batches(reader, handle, list(forms), size):
                room -= batch.nbytes
                if room < 0:
                    raise ValueError(f"its {size} bytes hold the same rows again and again")
                batches.append(batch)
        if not batches:
            raise ValueError("it has no rows")
        table = pa.Table.from_batches(batches)
        return {name: _values(name, table[name], form) for name, form in forms.items()}


def _check_columns(schema: Any, forms: Mapping[str, Form]) -> None:
    import pyarrow as pa

    plain = {"text": pa.string(), "number": pa.float32(), "truth": pa.bool_()}
    for name, form in forms.items():
        if schema.names.count(name) != 1:
            raise ValueError(f"it has {schema.names.count(name)} columns {name!r}; wanted: one")
        found = schema.field(name).type
        if form == "vector":
            is_list = pa.types.is_fixed_size_list(found) and 0 < found.list_size <= limits().width
            accepted = is_list and found.value_type == pa.float32()
        else:
            accepted = found == plain[form]
        if not accepted:
            raise ValueError(f"column {name!r} is of type {short(str(found))}; wanted: {_WANTED[form]}")


def _values(name: str, column: Any, form: Form) -> Any:
    whole = column.combine_chunks()
    for part in (column, whole.flatten()) if form == "vector" else (column,):
        if part.null_count:
            raise ValueError(f"column {name!r} has a null")
    if form == "text":
        return column.to_pylist()
    if form == "vector":
        return whole.flatten().to_numpy().reshape(len(column), -1)
    return column.to_numpy()
