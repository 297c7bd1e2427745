"""Atomic writes, sealed folders and the cache."""

import errno
import hashlib
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from metalora.errors import UserError, one_line
from metalora.limits import limits
from metalora.places import absolute
from metalora.reading import check_plain, read_bytes

ATTEMPTS = 20  # to put a folder in its place
SUMS = "SHA256SUMS"  # as sha256sum writes and checks it

_log = logging.getLogger(__name__)


def cache_path(kind: str) -> Path:
    """Return the cache folder of a kind, in ``$METALORA_CACHE`` or ``~/.cache/metalora``; it may not exist yet."""
    asked = os.environ.get("METALORA_CACHE")
    return (absolute(asked) if asked else _own_cache()) / kind


def cache_dir(kind: str) -> Path:
    """Return the cache folder of a kind; it is made if it does not exist.

    Raises:
        UserError: the folder cannot be made.
    """
    folder = cache_path(kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror}; set METALORA_CACHE to another folder"
        raise UserError(f"the cache folder {folder} cannot be made ({reason})") from None
    return folder


def cached(
    folder: Path,
    make: Callable[[Path], None],
    sealed: Collection[str] | None = None,
    check: Callable[[], str | None] = lambda: None,
) -> Path:
    """Return a folder of the cache; it is made if it is missing, and made again if it is damaged.

    If several processes need it, one makes it and the others wait.

    Args:
        folder: The folder.
        make: Function that writes the files into the folder that it is given.
        sealed: Files that are checked each time; default: all.
        check: Function that returns what else is damaged, or None.

    Raises:
        UserError: the folder cannot be written.
    """

    def is_sound() -> bool:
        return (folder / SUMS).is_file() and not (damage(folder, sealed) or check())

    if is_sound():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if is_sound():  # made by another meanwhile
                return folder
            if folder.exists():
                reason = damage(folder, sealed) or check() or f"{SUMS} is missing"
                _log.warning("%s in the cache is damaged (%s), and is made anew", folder.name, reason)
            with atomic_folder(folder) as temporary:
                make(temporary)
                seal(temporary, sealed)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or one_line(error)}; set METALORA_CACHE to another folder)"
        ) from error
    return folder


def seal(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write the SHA-256 of a folder's files (default: all), for `damage` to compare."""
    names = sorted(_all_files(folder) if names is None else names)
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def damage(folder: Path, names: Iterable[str] | None = None) -> str | None:
    """Return what is wrong with the files of a sealed folder; None if nothing is, or if it was never sealed.

    Args:
        folder: The folder.
        names: Files that must have been sealed; default: all files in it except hidden ones.
    """
    if not os.path.lexists(folder / SUMS):
        return None
    try:
        lines = read_bytes(folder / SUMS, limits().text_bytes, SUMS).decode().splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError:
        return f"{SUMS} cannot be read"
    wanted = _all_files(folder) if names is None else set(names)
    if not wanted or wanted - sums.keys():
        return f"{SUMS} lacks {min(wanted - sums.keys(), default='everything')}"
    for name, digest in sums.items():
        try:
            if not Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder)):
                return f"{name} lies outside"
            if sha256(folder / name) != digest:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError):
            return f"{name} cannot be read"
    return None


def _all_files(folder: Path) -> set[str]:
    """Return the files below a folder that are its content: not hidden ones, which systems leave behind."""
    below = (file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir())
    return {str(path) for path in below if path.name != SUMS and not any(part.startswith(".") for part in path.parts)}


def sha256(file: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is a pipe or a device.
    """
    check_plain(file)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _own_cache() -> Path:
    """Return ``~/.cache/metalora``, or a folder among the temporary files where there is no home that can be written.

    The user of a container may be only a number, without a home.
    """
    with suppress(RuntimeError):
        folder = Path.home() / ".cache" / "metalora"
        if os.access(next(path for path in (folder, *folder.parents) if path.exists()), os.W_OK):
            return folder
    shared = Path(tempfile.gettempdir()) / f"metalora-{os.getuid()}"
    if os.path.lexists(shared) and (shared.is_symlink() or shared.stat().st_uid != os.getuid()):
        raise UserError(f"the cache folder {shared} is another user's; set METALORA_CACHE to a folder of your own")
    return shared


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it becomes ``path`` only if the block succeeds.

    The file is as readable as one that ``open`` makes: the umask decides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with plain_mode(temporary):
            yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it becomes ``path`` only if the block succeeds.

    An existing ``path`` is replaced, and kept if the block fails. The folder and the files in it are as readable as
    those that ``mkdir`` and ``open`` make: the umask decides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    readable = temporary.stat().st_mode & 0o666  # what the umask leaves; some libraries write private files
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                if not file.is_symlink():
                    file.chmod(stat.S_IMODE(file.stat().st_mode) | readable)
                _sync(file)
        _put(temporary, path, old)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.replace(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _discard(old)


@contextmanager
def plain_mode(file: Path) -> Iterator[None]:
    """Give a file that the block writes the permissions of one that ``open`` makes.

    Some libraries write a private file of their own, and put it in the place of the one that they are given.
    """
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    yield
    file.chmod(mode)


def _temporary(path: Path) -> Path:
    """Return a new hidden name beside a path."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _discard(path: Path) -> None:
    """Remove a folder or a link to a folder; the target of a link stays."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


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
            _discard(old)  # another process was faster with a folder of its own
    raise OSError(errno.EBUSY, f"{path} is written again and again by others")


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
