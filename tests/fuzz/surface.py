"""What is fuzzed: a `Surface` makes valid files, changes copies of them, and has a reader of this project read them."""

import enum
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch


class Expect(enum.Enum):
    """What may come of reading a mutant without it being a fault."""

    REFUSED = "refused"  # one line
    SAME = "same"  # read as the valid file is
    EITHER = "either"  # one of the two: what is changed is covered by a checksum, or says nothing
    ANY = "any"  # another value may be read too: nothing tells it from one that was meant


@dataclass(frozen=True)
class Mutation:
    """What was done to the files.

    Attributes:
        recipe: In words.
        expect: What may come of it.
    """

    recipe: str
    expect: Expect


@dataclass(frozen=True)
class Surface:
    """A reader of files or requests.

    Attributes:
        name: Its name on the command line and in the table.
        make: Writes valid files, each kind into a folder of its own below the one it is given, and returns what reads
            such a folder. What that returns is compared by its `fingerprint`. A folder ``KIND~`` is not changed: it is
            what the reader of ``KIND`` may fall back to.
        mutate: Changes a copy of such a folder.
        checked: Whether the files carry checksums, so that a changed byte cannot pass for another value.
        named: What a refusal has to name, one of them; ``{folder}`` is the folder of the mutant.
        refused: Kinds that are files of formats that are never read.
        share: Mutants of this surface for each of another whose share is 1.
        writes: Whether reading may write into the folder.
    """

    name: str
    make: Callable[[Path], Callable[[Path], object]]
    mutate: Callable[[Random, Path], Mutation]
    checked: bool = False
    named: tuple[str, ...] = ("{folder}",)
    refused: tuple[str, ...] = ()
    share: float = 1.0
    writes: bool = False

    @property
    def bytes_expect(self) -> Expect:
        """What may come of changed bytes."""
        return Expect.EITHER if self.checked else Expect.ANY


def fingerprint(value: object) -> str:
    """Return a hash of plain values, tensors and arrays: equal for what is equal, to the bit."""
    digest = hashlib.sha256()
    _feed(digest.update, value)
    return digest.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        update(f"array {value.dtype} {value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes() if value.dtype != object else repr(value.tolist()).encode())
    elif isinstance(value, Mapping):
        update(f"mapping {len(value)}".encode())
        for key in sorted(value, key=repr):
            _feed(update, key)
            _feed(update, value[key])
    elif isinstance(value, list | tuple):
        update(f"sequence {len(value)}".encode())
        for part in value:
            _feed(update, part)
    else:
        text = value if isinstance(value, bytes) else repr(value).encode(errors="surrogatepass")
        update(f"{type(value).__name__} {len(text)} ".encode() + text)
