"""A process that reads mutants one after another and says what came of each; `tests.fuzz.runner` starts and ends it.

A line of JSON on the pipe it is given before a mutant is read, with what was done to it, and one after.
"""

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from metalora.errors import UserError
from tests.fuzz.judge import FILE, SECONDS, Outcomes, Watch, judge
from tests.fuzz.surface import Surface, fingerprint


def main(place: str, seed: int, first: int, last: int, work: Path, pipe: int) -> None:
    """Read the mutants of a surface whose numbers are from ``first`` to ``last - 1``.

    Args:
        place: The surface, as ``MODULE:NAME``.
        seed: Of all mutants.
        first: The first number.
        last: The one after the last.
        work: An empty folder for everything.
        pipe: Where to tell.
    """
    surface = find_surface(place)
    seeds, mutant, cache, scratch = (work / name for name in ("seeds", "mutant", "cache", "scratch"))
    scratch.mkdir()
    os.environ["METALORA_CACHE"] = str(cache)
    tempfile.tempdir = str(scratch)
    _make_outside(work)
    read = surface.make(seeds)
    told = {
        path.name: _read_twice(read, path, mutant, cache, path.name in surface.refused)
        for path in sorted(seeds.iterdir())
    }
    kinds = [kind for kind in told if not kind.endswith("~")]
    right = {kind: Outcomes(told[kind], frozenset(told[k] for k in told if k == f"{kind}~")) for kind in kinds}
    watch = Watch([cache, scratch, *([mutant] if surface.writes else [])])
    log = (work / "log").open("w")
    faulthandler.enable(log)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # too large a file is then an OSError
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    with os.fdopen(pipe, "w") as out:

        def tell(**said: Any) -> None:
            out.write(json.dumps(said) + "\n")
            out.flush()

        tell(ready=True)
        for number in range(first, last):
            random = Random(f"{surface.name}:{seed}:{number}")
            kind = random.choice(kinds)
            _copy(seeds / kind, mutant, cache)
            mutation = surface.mutate(random, mutant)
            tell(number=number, recipe=f"{kind}: {mutation.recipe}")
            faulthandler.dump_traceback_later(0.9 * SECONDS, file=log)
            began = time.monotonic()
            judged = judge(surface, read, mutant, mutation.expect, right[kind], watch)
            faulthandler.cancel_dump_traceback_later()
            tell(verdict=judged.verdict.value, reason=judged.reason, seconds=time.monotonic() - began)


def find_surface(place: str) -> Surface:
    """Return the surface that ``MODULE:NAME`` names."""
    module, _, name = place.partition(":")
    surface: Surface = getattr(import_module(module), name)
    return surface


def _read_twice(read: Callable[[Path], object], seed: Path, mutant: Path, cache: Path, refused: bool) -> str:
    """Return the fingerprint of what a folder reads as, unchanged; verdicts rest on its being the same twice."""
    met = set()
    for _ in range(2):
        _copy(seed, mutant, cache)
        try:
            met.add(fingerprint(read(mutant)))
        except UserError:
            if not refused:
                raise
            met.add("refused")
    assert len(met) == 1, f"reading {seed.name} twice gives two things"
    return met.pop()


def _make_outside(work: Path) -> None:
    """Make the files beside the mutant that nothing may change, and that its links may point to."""
    (work / "outside" / "folder").mkdir(parents=True)
    for name in ("canary", "folder/canary"):
        (work / "outside" / name).write_text("as it was\n", encoding="utf-8")


def _copy(seed: Path, mutant: Path, cache: Path) -> None:
    """Put a fresh copy of a valid folder in the mutant's place, with an empty cache."""
    for folder in (mutant, cache):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seed, mutant, symlinks=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5]), int(sys.argv[6]))
