"""A short path for temporary files: Ray and multiprocessing put sockets there, whose paths the system limits."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 36  # bytes: a socket's path takes 107, of which Ray's own part is up to 70
ROOTS = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def short_temporary_folder() -> Iterator[None]:
    """Let ``TMPDIR``, if its path is too long for sockets, be reached by a short link to it within the block.

    Where no such link can be made, all stays as it is.
    """
    given = os.environ.get("TMPDIR")
    if not given or len(os.fsencode(given)) <= LONGEST or not Path(given).is_dir():
        yield
        return
    root = next((root for root in ROOTS if os.access(root, os.W_OK)), None)
    if root is None:
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
