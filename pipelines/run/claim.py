"""Claim the folder and the name of a run: one command at a time has a folder, and one run has a name."""

import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from metalora.config import Config
from metalora.errors import UserError, given_as
from metalora.places import absolute
from metalora.tracking.build import tracking_address
from pipelines.run.folder import check_links

LOCK = ".lock"
MOST_NAMES = 1000
LONGEST = 200  # bytes of a name: file systems take 255, and trials and temporary files add to it
FORBIDDEN = set("/\\:")  # in the names of folders or of MLflow's models


@contextmanager
def named_run(config: Config, resume: bool, kind: str, command: str) -> Iterator[tuple[Config, Path]]:
    """Give a run its name, its tracking URI and its folder, which belongs to this command until the block ends.

    An interrupt gets a note that says how the run is continued.

    Args:
        config: Settings of the run.
        resume: Whether the run must exist already; else it must not exist.
        kind: Beginning of a new name, if the settings have none.
        command: The command that is run: train, tune.

    Yields:
        The settings with name and tracking URI, and the folder.

    Raises:
        UserError: the name is not valid or is taken, or the folder cannot be made.
    """
    name = config.tracking.run_name
    if name is not None and not resume:
        check_name(name)
    made_up = f"{kind}-{config.backbone.backbone.rpartition('/')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
    uri = tracking_address(config.tracking.tracking_uri)
    with claimed(Path(config.cluster.output), name or re.sub(r"[^\w.-]", "_", made_up), resume, name is None) as folder:
        try:
            yield replace(config, tracking=replace(config.tracking, run_name=folder.name, tracking_uri=uri)), folder
        except KeyboardInterrupt as error:
            if all(path.name == LOCK for path in folder.iterdir()):
                raise
            error.add_note(to_continue(folder, command))
            raise


def to_continue(folder: Path, command: str) -> str:
    """Return the line that says how a run is continued, from the working directory."""
    name = folder.name if folder.parent == absolute("runs") else str(folder)
    return f"to continue: metalora {command} --resume {shlex.quote(name)}"


def check_name(name: str) -> None:
    """Check that a name is valid for a folder, an MLflow run and a registered model.

    Raises:
        UserError: the name is not valid; the message says what is accepted.
    """
    bad = sorted({char for char in name if char in FORBIDDEN or not char.isprintable()})
    if not name.strip() or name.startswith((".", "-")) or bad or len(name.encode(errors="replace")) > LONGEST:
        met = f", it holds {', '.join(map(repr, bad))}" if bad else ""
        raise UserError(
            f"run_name {name!r} must be a plain folder name{met}: at most {LONGEST} bytes of printable characters, "
            f"without / \\ : and not beginning with . or -{given_as('run_name')}"
        )


@contextmanager
def claimed(output: Path, name: str, resume: bool, made_up: bool = False) -> Iterator[Path]:
    """Claim the folder of a run for this command, until the block ends.

    The claim is a lock, which the system frees when the process dies. A folder that is still empty when the block ends,
    for example because the settings were refused, is removed.

    Args:
        output: Folder of all runs.
        name: Name of the run.
        resume: Whether the run must exist already; else it must not exist.
        made_up: Whether to take another name if this one is taken.

    Raises:
        UserError: the name is taken, another command uses the run, or the folder cannot be made.
    """
    new = [path for path in (output, *output.parents) if not path.exists()]
    for number in count(1):
        folder = output / (name if number == 1 else f"{name}-{number}")
        lock = FileLock(folder / LOCK)
        try:
            _take(folder, lock, resume)
            break
        except UserError:
            if not made_up or number == MOST_NAMES:
                raise
    try:
        yield folder
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()  # while it is held: another command looks whether its lock is still the file
        lock.release()
        with suppress(OSError):
            for path in (folder, *new):
                path.rmdir()  # if it is empty


def _take(folder: Path, lock: FileLock, resume: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"run {folder.name!r} in {folder.parent} is running in another command") from None
    except OSError as error:
        link = f" ({LOCK} is a link: remove it)" if (folder / LOCK).is_symlink() else ""
        raise UserError(f"the run's folder {folder} cannot be written: {error.strerror}{link}") from None
    if resume:
        try:
            check_links(folder)
        except UserError:
            lock.release()
            raise
    elif any(path.name != LOCK for path in folder.iterdir()):
        lock.release()
        raise UserError(
            f"run {folder.name!r} exists in {folder.parent}: choose another --run-name, or --resume {folder.name}"
        )
