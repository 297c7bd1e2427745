"""Atomic writes and the cache folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metalora.errors import UserError


def cache_path(kind: str) -> Path:
    """Return the cache folder of a kind, below ``$METALORA_CACHE`` or ``~/.cache/metalora``; it may not be there."""
    root = os.environ.get("METALORA_CACHE") or Path.home() / ".cache" / "metalora"
    return Path(root).expanduser() / kind


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
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    except BaseException:
        if old.exists():
            old.replace(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
