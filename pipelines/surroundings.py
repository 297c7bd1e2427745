"""Provide what libraries expect of a machine: a home folder, a short path for temporary files, a place for caches."""

import hashlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import metalora
from metalora.files import cache_path

LONGEST = 36  # bytes of TMPDIR: a socket's path takes 107, of which Ray's own part is up to 70
ROOTS = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def usable_surroundings() -> Iterator[None]:
    """Provide, within the block, what this user or machine lacks."""
    with ExitStack() as changes:
        changes.enter_context(_short_temporary_folder())
        changes.enter_context(_some_home())
        changes.enter_context(_kept_compilations())
        yield


def handle(number: signal.Signals, handler: Any) -> Any:
    """Set the handler of a signal, and return the one before; only the main thread can, others change nothing."""
    before = signal.getsignal(number)
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler or signal.SIG_DFL)  # None: one that is not Python's
    return before


def keep_compiled() -> None:
    """Set the environment so that torch.compile keeps compiled code beside the other caches.

    So trials, restarts and, on a shared file system, other nodes find it again. Every process of a run must call this
    before torch's compiler is imported. Whole graphs are found again even if they contain an autograd function of ours.
    Torch's key of a graph covers the traced operations and the kernels, but not the Python code that launches the
    kernels, so each version of that code gets a folder of its own.
    """
    for name, value in _compiler_settings().items():
        os.environ.setdefault(name, value)


def _compiler_settings() -> dict[str, str]:
    fused = sorted((Path(metalora.__file__).parent / "adapters" / "fused").glob("*.py"))
    version = hashlib.sha256(b"".join(file.read_bytes() for file in fused)).hexdigest()[:12]
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(cache_path("compiled") / version),
        "TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD": "1",
    }


@contextmanager
def _kept_compilations() -> Iterator[None]:
    """Do as `keep_compiled` within the block."""
    before = set(os.environ)
    keep_compiled()
    try:
        yield
    finally:
        for name in _compiler_settings().keys() - before:
            del os.environ[name]


@contextmanager
def _short_temporary_folder() -> Iterator[None]:
    """Let ``TMPDIR`` be reached by a short link, if it is relative or too long for Ray's and multiprocessing's sockets.

    Where no such link can be made, all stays as it is.
    """
    given = os.environ.get("TMPDIR", "")
    root = next((root for root in ROOTS if os.access(root, os.W_OK)), None)
    fits = len(os.fsencode(given)) <= LONGEST and Path(given).is_absolute()
    if fits or not given or not Path(given).is_dir() or root is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="ml-", dir=root) as folder:
        link = Path(folder) / "t"
        link.symlink_to(Path(given).absolute())
        os.environ["TMPDIR"], before = str(link), tempfile.tempdir
        tempfile.tempdir = None  # what it has found before
        try:
            yield
        finally:
            os.environ["TMPDIR"], tempfile.tempdir = given, before


@contextmanager
def _some_home() -> Iterator[None]:
    """Give a user without a home (in a container it may be only a number) a folder among the temporary files."""
    try:
        Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir()) / f"metalora-{os.getuid()}"
        home.mkdir(mode=0o700, exist_ok=True)
        os.environ["HOME"] = str(home)
        try:
            yield
        finally:
            del os.environ["HOME"]
    else:
        yield
