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
from tests.fuzz.surface import Expect, Mutation, Surface

VALID, CHANGED = "valid", "changed"


def _surface(fault: Callable[[Path], object], expect: Expect = Expect.EITHER) -> Surface:
    def make(seeds: Path) -> Callable[[Path], object]:
        (seeds / "one").mkdir(parents=True)
        (seeds / "one" / "file").write_text(VALID)
        return lambda folder: fault(folder) if (folder / "file").read_text() != VALID else VALID

    def mutate(random: Random, folder: Path) -> Mutation:
        (folder / "file").write_text(CHANGED)
        return Mutation("changed", expect)

    return Surface(fault.__name__, make, mutate)


def _right(folder: Path) -> object:
    return VALID


def _refusing(folder: Path) -> object:
    raise UserError(f"file {folder / 'file'} cannot be read")


def _silent(folder: Path) -> object:
    return (folder / "file").read_text()


def _raising(folder: Path) -> object:
    return {}["missing"]


def _vague(folder: Path) -> object:
    raise UserError("something is wrong")


def _talkative(folder: Path) -> object:
    raise UserError(f"{folder}\nis wrong")


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


right, refusing, silent, raising = _surface(_right), _surface(_refusing), _surface(_silent), _surface(_raising)
vague, talkative, warning, crashing = _surface(_vague), _surface(_talkative), _surface(_warning), _surface(_crashing)
hanging, eating, eating_within_a_gate = _surface(_hanging), _surface(_eating), _surface(_eating_within_a_gate)
writing_outside, writing_elsewhere = _surface(_writing_outside), _surface(_writing_elsewhere)
starting_a_program = _surface(_starting_a_program)
taking_what_is_wrong = _surface(_right, Expect.REFUSED)
refusing_what_is_right = _surface(_refusing, Expect.SAME)
