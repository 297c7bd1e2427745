"""Surfaces with a reader that is at fault, one for each kind of fault: the fuzzer has to notice them."""

import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

from metalora.errors import UserError
from metalora.reading import gate
from tests.fuzz.judge import Verdict
from tests.fuzz.surface import Expect, Mutation, Surface

VALID = "valid"


def _right(folder: Path) -> object:
    return VALID


def _refusing(folder: Path) -> object:
    raise UserError(f"file {folder / 'file'} cannot be read")


def _silent(folder: Path) -> object:
    return "something else"


def _raising(folder: Path) -> object:
    return {}["missing"]


def _vague(folder: Path) -> object:
    raise UserError("something is wrong")


def _talkative(folder: Path) -> object:
    error = UserError("")
    error.args = (f"{folder}\nis wrong",)  # a `UserError` itself would make one line of it
    raise error


def _warning(folder: Path) -> object:
    warnings.warn("this is odd", stacklevel=2)
    return VALID


def _crashing(folder: Path) -> object:
    os.kill(os.getpid(), signal.SIGSEGV)
    return None


def _hanging(folder: Path) -> object:
    time.sleep(1000)
    return None


def _eating(folder: Path) -> object:
    return VALID if len(bytearray(2**30)) else None


def _eating_within_a_gate(folder: Path) -> object:
    with gate(f"file {folder}"):
        return len(bytearray(2**36))


def _writing_outside(folder: Path) -> object:
    (folder.parent / "outside" / "canary").write_text("harm")
    return VALID


def _writing_elsewhere(folder: Path) -> object:
    (folder.parent / "elsewhere").write_text("harm")
    return VALID


def _starting_a_program(folder: Path) -> object:
    os.system("true")
    return VALID


# What a reader does: what may come of it, and the verdict that is due.
FAULTS: dict[str, tuple[Callable[[Path], object], Expect, Verdict]] = {
    "right": (_right, Expect.EITHER, Verdict.RIGHT),
    "refusing": (_refusing, Expect.EITHER, Verdict.REFUSED),
    "silent": (_silent, Expect.EITHER, Verdict.SILENT),
    "legal": (_silent, Expect.ANY, Verdict.RIGHT),
    "taking what is wrong": (_right, Expect.REFUSED, Verdict.SILENT),
    "raising": (_raising, Expect.ANY, Verdict.TRACEBACK),
    "vague": (_vague, Expect.ANY, Verdict.TRACEBACK),
    "talkative": (_talkative, Expect.ANY, Verdict.TRACEBACK),
    "warning": (_warning, Expect.ANY, Verdict.TRACEBACK),
    "refusing what is right": (_refusing, Expect.SAME, Verdict.TRACEBACK),
    "eating": (_eating, Expect.ANY, Verdict.MEMORY),
    "eating within a gate": (_eating_within_a_gate, Expect.ANY, Verdict.MEMORY),
    "writing outside": (_writing_outside, Expect.ANY, Verdict.OUTSIDE),
    "writing elsewhere": (_writing_elsewhere, Expect.ANY, Verdict.OUTSIDE),
    "starting a program": (_starting_a_program, Expect.ANY, Verdict.OUTSIDE),
    "crashing": (_crashing, Expect.ANY, Verdict.TRACEBACK),
    "hanging": (_hanging, Expect.ANY, Verdict.HANG),
}
ENDING = ("crashing", "hanging")  # after which a child has to be started anew


def _surface(*names: str) -> Surface:
    def make(seeds: Path) -> Callable[[Path], object]:
        (seeds / "one").mkdir(parents=True)
        (seeds / "one" / "file").write_text(VALID)
        return read

    def read(folder: Path) -> object:
        said = (folder / "file").read_text()
        return VALID if said == VALID else FAULTS[said][0](folder)

    def mutate(random: Random, folder: Path) -> Mutation:
        name = random.choice(names)
        (folder / "file").write_text(name)
        return Mutation(name, FAULTS[name][1])

    return Surface("planted", make, mutate)


lasting = _surface(*(name for name in FAULTS if name not in ENDING))
crashing, hanging = _surface("crashing"), _surface("hanging")
