"""The data cache after a first load, read by ``load_table``: it is nobody's to write but ours, and disks are bad."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow.parquet as pq

from tests.fuzz.mutators import change_file, replace_file
from tests.fuzz.surface import Expect, Mutation, Surface
from tests.fuzz.surfaces.data import read_all, write_tree
from tests.fuzz.surfaces.parquet import small_table


def make(seeds: Path) -> Callable[[Path], object]:
    """Load a folder and a Parquet file where the mutants will lie, and keep them with the cache that this leaves."""
    mutant = seeds.parent / "mutant"
    for kind in ("parquet", "tree"):
        mutant.mkdir()
        if kind == "tree":
            write_tree(mutant / "data")
        else:
            pq.write_table(small_table(), mutant / "data.parquet")
        read(mutant)
        shutil.copytree(mutant, seeds / kind)
        shutil.rmtree(mutant)
    return read


def read(folder: Path) -> object:
    """Read a data set, with the cache beside it."""
    before = os.environ["METALORA_CACHE"]
    os.environ["METALORA_CACHE"] = str(folder / "cache")
    try:
        return read_all(next(path for path in folder.iterdir() if path.name.startswith("data")))
    finally:
        os.environ["METALORA_CACHE"] = before


def mutate(random: Random, folder: Path) -> Mutation:
    """Change a file of the cache."""
    file = random.choice(sorted(file for file in (folder / "cache").rglob("*") if file.is_file()))
    if file.stat().st_size and random.random() < 0.9:
        return Mutation(change_file(random, file), Expect.SAME)
    return Mutation(replace_file(random, file), Expect.EITHER)


surface = Surface("cache", make, mutate, checked=True, named=("{folder}", "cache"), writes=True)
