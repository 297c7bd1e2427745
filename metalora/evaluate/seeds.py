"""The file of generated seeds: one row a sample."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metalora.files import atomic_file


def write_seeds(
    path: Path,
    ids: Sequence[str],
    domains: Sequence[str],
    labels: Sequence[str],
    splits: Sequence[str],
    seeds: np.ndarray,
) -> None:
    """Write Parquet with columns id, domain, label, split (strings) and seed (a list of S float32).

    Args:
        path: The file; replaced as a whole, or not at all.
        ids: N, like what follows.
        domains: Names of the samples' domains.
        labels: Names of their labels.
        splits: ``train``, ``val`` or ``test``.
        seeds: (N, S).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.array(np.ascontiguousarray(seeds, dtype=np.float32).reshape(-1))
    columns = {
        "id": pa.array(ids, pa.string()),
        "domain": pa.array(domains, pa.string()),
        "label": pa.array(labels, pa.string()),
        "split": pa.array(splits, pa.string()),
        "seed": pa.FixedSizeListArray.from_arrays(flat, seeds.shape[1]),
    }
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
