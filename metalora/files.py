"""Atomic writes and the cache folder."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metalora.errors import UserError
from metalora.places import absolute

ATTEMPTS = 20  # to put a folder in its place


def cache_path(kind: str) -> Path:
    """Return the cache folder of a kind, below ``$METALORA_CACHE`` or ``~/.cache/metalora``; it may not be there."""
    asked = os.environ.get("METALORA_CACHE")
    return (absolute(asked) if asked else _own_cache()) / kind


def cache_dir(kind: str) -> Path:
    """Return (and make) the cache folder of a kind.

    Raises:
        UserError: it cannot be made.
    """
    folder = cache_path(kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror}; METALORA_CACHE says where"
        raise UserError(f"the cache folder {folder} cannot be made ({reason})") from None
    return folder


def _own_cache() -> Path:
    """Return ``~/.cache/metalora``, or a folder among the temporary files where there is no home that can be written.

    The user of a container may be a mere number, without a home.
    """
    with suppress(RuntimeError):
        folder = Path.home() / ".cache" / "metalora"
        if os.access(next(path for path in (folder, *folder.parents) if path.exists()), os.W_OK):
            return folder
    return Path(tempfile.gettempdir()) / f"metalora-{os.getuid()}"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it becomes ``path`` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # a cache may be shared, and temporary files are private
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it becomes ``path`` only if the block succeeds.

    An existing ``path`` is replaced, and kept if the block fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        temporary.chmod(0o755)
        _put(temporary, path, old)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _put(new: Path, path: Path, old: Path) -> None:
    """Rename a folder to ``path``, and one that is there to ``old``, though others may be doing the same."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError):
            path.replace(old)
        try:
            new.replace(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(old, ignore_errors=True)  # another process was faster with a folder of its own
    raise OSError(errno.EBUSY, f"{path} is written again and again by others")


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
