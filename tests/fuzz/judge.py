"""The verdict on what a reader did with a mutant, by what can be seen from outside of it."""

import enum
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from metalora.errors import LONGEST, UserError
from tests.fuzz.surface import Expect, Surface, fingerprint

SECONDS = 10.0  # a mutant may take
MEMORY = 768 * 2**20  # bytes of RSS it may add while it is read
ADDRESSES = 4 * MEMORY  # of address space, the bound that the operating system enforces: maps and stacks count too
FILE = 2**28  # bytes of a file that it may write

_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad alloc",
    "malloc",
    "file too large",
)
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
    "pty.spawn",
             "socket.connect", "socket.getaddrinfo", "pickle.find_class", "exec_module")  # fmt: skip
_ENTRIES = {  # events on a folder's entries: which arguments are paths, each with that of the folder it is relative to
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.link": ((1, 3),),
}
_CONTENTS = ("os.truncate", "os.chmod", "os.chown", "os.utime")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Verdict(enum.Enum):
    """What came of a mutant; those from `SILENT` on are faults."""

    REFUSED = "refused"
    RIGHT = "read right"
    SILENT = "silent"
    TRACEBACK = "traceback"
    HANG = "hang"
    MEMORY = "memory"
    OUTSIDE = "outside"

    @property
    def fault(self) -> bool:
        """Whether it is one."""
        return self not in (Verdict.REFUSED, Verdict.RIGHT)


@dataclass(frozen=True)
class Judged:
    """A verdict, and why."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Outcomes:
    """Fingerprints.

    Attributes:
        whole: Of what a valid folder reads as.
        fallbacks: Of what its reader may fall back to where it is damaged, such as an earlier checkpoint.
    """

    whole: str
    fallbacks: frozenset[str] = frozenset()


class Watch:
    """Sees what Python does outside of some folders, while it is on.

    Args:
        allowed: The folders that may be written.
    """

    def __init__(self, allowed: list[Path]) -> None:
        self.allowed = [os.path.realpath(folder) for folder in allowed]
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event.startswith(_PROGRAMS):
            self.seen.append(f"{event} {arguments[:2]!r:.200}")
        elif event in _CONTENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING):
            if not isinstance(arguments[0], int | NoneType):  # what is open already was judged when it was opened
                self._check(event, os.path.realpath(os.fsdecode(arguments[0])))
        elif event in _ENTRIES:
            for path, folder in _ENTRIES[event]:
                self._check(event, _entry(arguments[path], arguments[folder]))

    def _check(self, event: str, path: str) -> None:
        allowed = any(path == folder or path.startswith(folder + os.sep) for folder in (*self.allowed, os.devnull))
        if not allowed:
            self.seen.append(f"{event} {path}")


def _entry(path: Any, folder: int) -> str:
    """Return where an entry of a folder is: if it is a link, what it points to is not touched."""
    place = Path("." if folder < 0 else f"/proc/self/fd/{folder}", os.fsdecode(path))
    return str(Path(os.path.realpath(place.parent)) / place.name)


def judge(
    surface: Surface, read: Callable[[Path], object], folder: Path, expect: Expect, right: Outcomes, watch: Watch
) -> Judged:
    """Have a mutant read, within the operating system's bounds, and judge what comes of it.

    Args:
        surface: The surface.
        read: Its reader.
        folder: The mutant; `outside` lies beside it.
        expect: What may come of it.
        right: The fingerprints of what the valid file reads as.
        watch: Sees what is done elsewhere; on for the length of the reading.
    """
    before = _files(surface, folder)
    _reset_peak()
    start = _memory("VmRSS")
    soft = _memory("VmSize") + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
    watch.seen.clear()
    error: BaseException | None = None
    outcome = ""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", append=True)  # but for what a reader has silenced on purpose
        watch.on = True
        try:
            outcome = fingerprint(read(folder))
        except BaseException as met:  # SystemExit and the like are no way to refuse a file either
            error = met
        finally:
            watch.on = False
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    grown = _memory("VmHWM") - start
    if _files(surface, folder) != before:
        return Judged(Verdict.OUTSIDE, "a file was changed that is not to be written")
    if watch.seen:
        return Judged(Verdict.OUTSIDE, "; ".join(watch.seen[:3]))
    if grown > MEMORY or (error is not None and _out_of_memory(error)):
        return Judged(Verdict.MEMORY, f"{grown >> 20} MiB more{f', then {_describe(error)}' if error else ''}")
    if told:
        return Judged(Verdict.TRACEBACK, f"a warning: {told[0].category.__name__}: {str(told[0].message)[:200]!r} "
                                         f"({Path(told[0].filename).name}:{told[0].lineno})")  # fmt: skip
    if error is not None:
        return _judge_error(error, surface, folder, expect)
    return _judge_outcome(outcome, expect, right)


def _judge_error(error: BaseException, surface: Surface, folder: Path, expect: Expect) -> Judged:
    if not isinstance(error, UserError):
        return Judged(Verdict.TRACEBACK, _describe(error))
    message = str(error)
    names = [name.format(folder=folder) for name in surface.named]
    if len(message.splitlines()) != 1 or len(message) > LONGEST + 3:
        return Judged(Verdict.TRACEBACK, f"a message of {len(message.splitlines())} lines: {message[:300]!r}")
    if not any(name in message for name in names):
        return Judged(Verdict.TRACEBACK, f"a message that does not name the file: {message[:300]!r}")
    if expect is Expect.SAME:
        return Judged(Verdict.TRACEBACK, f"what is right was refused: {message[:300]!r}")
    return Judged(Verdict.REFUSED, message[:300])


def _judge_outcome(outcome: str, expect: Expect, right: Outcomes) -> Judged:
    whole = outcome == right.whole
    if expect is Expect.ANY or (whole and expect is not Expect.REFUSED):
        return Judged(Verdict.RIGHT)
    if outcome in right.fallbacks and expect is not Expect.SAME:
        return Judged(Verdict.RIGHT, "an earlier one")
    met = "as if nothing were wrong" if whole else "as something else"
    return Judged(Verdict.SILENT, f"it was read {met}")


def _out_of_memory(error: BaseException | None) -> bool:
    """Tell whether memory ran out somewhere on the way to an error: a gate makes one line of that, too."""
    met: list[BaseException] = []  # an error may lead to itself
    while error is not None and error not in met:
        if isinstance(error, MemoryError) or any(said in str(error).lower() for said in _NO_MEMORY):
            return True
        met.append(error)
        error = error.__cause__ or error.__context__
    return False


def _describe(error: BaseException | None) -> str:
    if error is None:
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/fuzz/" not in frame.filename]
    ours = [frame for frame in frames if "/metalora/" in frame.filename or "/pipelines/" in frame.filename]
    where = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {' '.join(str(error)[:300].split())}{where}"


def _files(surface: Surface, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what tells whether files that are not to be written were: number, kind, size and time of each."""
    found = {}
    for top in (folder.parent / "outside", *(() if surface.writes else (folder,))):
        for place, folders, files in os.walk(top):
            for name in (*folders, *files):
                path = Path(place) / name
                status = path.lstat()
                found[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def _reset_peak() -> None:
    """Have the kernel count the peak of RSS anew; where it does not, the peak is the process's, and bounds it too."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
