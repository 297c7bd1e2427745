"""Runs the mutants of a surface in child processes, and ends those that hang."""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.judge import SECONDS, Verdict

ROOT = Path(__file__).parents[2]
START_SECONDS = 180.0  # to import libraries and make the valid files


@dataclass(frozen=True)
class Fault:
    """A mutant that something was wrong with."""

    number: int
    verdict: Verdict
    recipe: str
    reason: str


@dataclass
class Result:
    """What came of a surface's mutants.

    Attributes:
        counts: By verdict.
        faults: Those with one.
        seconds: All of it took, the making of the valid files included.
    """

    counts: Counter[Verdict] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0


def run(
    place: str,
    seed: int,
    numbers: range,
    until: float = float("inf"),
    hear: Callable[[Fault], None] = lambda fault: None,
    limit: float = SECONDS,
    keep: Path | None = None,
) -> Result:
    """Read mutants of a surface.

    Args:
        place: The surface, as ``MODULE:NAME``.
        seed: Of all mutants.
        numbers: Which ones.
        until: When to stop, by `time.monotonic`.
        hear: Told of each fault.
        limit: Seconds that a mutant may take.
        keep: Where to leave the files of the last mutant.
    """
    result, began, first = Result(), time.monotonic(), numbers.start
    while first < numbers.stop and time.monotonic() < until:
        with _child(place, seed, first, numbers.stop) as (child, lines, log):
            first = _listen(child, lines, log, first, until, limit, result, hear)
            if keep is not None:
                shutil.move(log.parent / "work" / "mutant", keep)
    result.seconds = time.monotonic() - began
    return result


def _listen(
    child: "subprocess.Popen[bytes]", lines: "_Lines", log: Path, first: int, until: float, limit: float,
    result: Result,
    hear: Callable[[Fault], None],
) -> int:  # fmt: skip
    """Note what a child says until it is through or has to be ended; return the number to go on with.

    Raises:
        RuntimeError: it does not come as far as the first mutant.
    """
    if lines.next(START_SECONDS) is None:
        child.kill()
        raise RuntimeError(f"the child did not start (status {child.wait()}); it said: {log.read_text()[-3000:]}")
    while time.monotonic() < until:
        mutant = lines.next(START_SECONDS)
        if mutant is None:
            if status := child.wait(START_SECONDS):
                said = f"{log.read_text()[-3000:]} {_frames(log)}"
                raise RuntimeError(f"the child failed behind mutant {first - 1} (status {status}): {said}")
            return sys.maxsize
        said = lines.next(limit)
        if said is None:
            said = _ended(child, log)
        verdict = Verdict(said["verdict"])
        result.counts[verdict] += 1
        first = mutant["number"] + 1
        if verdict.fault:
            result.faults.append(Fault(mutant["number"], verdict, mutant["recipe"], said["reason"]))
            hear(result.faults[-1])
        if child.returncode is not None:
            break
    return first


def _ended(child: "subprocess.Popen[bytes]", log: Path) -> dict[str, Any]:
    """Say what became of a child that does not answer; it is gone then."""
    try:
        status = child.wait(0.2)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return {"verdict": Verdict.HANG.value, "reason": _frames(log)}
    killed = status == -9  # not by us: the kernel's, where memory ran out
    verdict = Verdict.MEMORY if killed else Verdict.TRACEBACK
    return {"verdict": verdict.value, "reason": f"the process ended with status {status}; {_frames(log)}"}


def _frames(log: Path) -> str:
    """Return the innermost calls, of those that `faulthandler` noted before a process was ended."""
    lines = [line.strip() for line in (log.parent / "work" / "log").read_text(errors="replace").splitlines()]
    frames = [line.replace(str(ROOT), "") for line in lines if line.startswith("File ")]
    ours = [frame for frame in frames if "/metalora/" in frame or "/pipelines/" in frame]
    return " < ".join([*frames[:1], *ours[:2]]) or "no calls are known"


class _Lines:
    """Lines of JSON from a pipe, each waited for no longer than is said."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self.data = b""

    def next(self, seconds: float) -> dict[str, Any] | None:
        """Return the next line; None if the pipe is closed or the time is up."""
        until = time.monotonic() + seconds
        while b"\n" not in self.data:
            ready, _, _ = select.select([self.pipe], [], [], max(0.0, until - time.monotonic()))
            more = os.read(self.pipe, 65536) if ready else b""
            if not more:
                return None
            self.data += more
        line, _, self.data = self.data.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said


@contextmanager
def _child(place: str, seed: int, first: int, last: int) -> Iterator[tuple["subprocess.Popen[bytes]", _Lines, Path]]:
    """Start a process of `tests.fuzz.child`, with what it says and the file of what its libraries print."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "METALORA_"))},
        "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MALLOC_ARENA_MAX": "2",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        log, (ours, theirs) = Path(folder) / "output", os.pipe()
        (Path(folder) / "work").mkdir()
        environment["MPLCONFIGDIR"] = str(Path(folder) / "work" / "scratch")
        arguments = [place, str(seed), str(first), str(last), str(Path(folder) / "work"), str(theirs)]
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.child", *arguments],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[theirs],
            )  # fmt: skip
        os.close(theirs)
        try:
            yield child, _Lines(ours), log
        finally:
            child.kill()
            child.wait()
            os.close(ours)
