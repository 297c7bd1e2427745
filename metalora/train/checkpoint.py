"""Checkpoints: each is a folder, which is complete or does not exist."""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalora.errors import UserError
from metalora.files import SUMS, atomic_folder, damage
from metalora.tensor_files import read_torch
from metalora.train.reporter import Write

STATE = "state.pt"
PREFIX = "checkpoint_"


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a training (tensors and plain values) into a folder."""
    torch.save(dict(state), folder / STATE)


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state that `write_state` wrote; nothing in it is executed.

    Raises:
        UserError: the folder has no readable state, or its files have changed since they were written.
    """
    reason = damage(folder)
    if reason:
        raise UserError(f"checkpoint {folder} is damaged: {reason}")
    state = read_torch(folder / STATE, f"checkpoint {folder}")
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {folder} cannot be read: it holds a {type(state).__name__}, not a state")
    if state.get("sealed") and not (folder / SUMS).exists():
        raise UserError(f"checkpoint {folder} is damaged: {SUMS} is missing")
    return state


def whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Return a checkpoint, or the newest undamaged one before it in the same folder; None if there is none.

    Args:
        folder: The checkpoint.
        say: Called with a message for each damaged checkpoint.
    """
    older = [path for path in folder.parent.glob(f"{PREFIX}*") if path.name < folder.name]
    for path in (folder, *sorted(older, reverse=True)):
        try:
            read_state(path)
        except UserError as error:
            say(f"{error}; it is left out")
        else:
            return path
    say(f"no checkpoint of {folder.parent.name} is undamaged: the training starts from the beginning")
    return None


def generator_states(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's random number generators."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Set the random number generators to the result of `generator_states`."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random number generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def checkpoint_failure(step: int, place: "CheckpointFolder | None" = None) -> Iterator[None]:
    """Turn an error in the block, which writes a checkpoint, into an error of one line with its reason.

    Args:
        step: Step of the checkpoint.
        place: Folder of the checkpoints, if known: the message then names the last good one in it.

    Raises:
        UserError: the checkpoint could not be written (disk full, say).
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by a RuntimeError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        where, last = ("", "") if place is None else (f" to {place.folder}", f"; last good one: {place.latest()}")
        raise UserError(f"the checkpoint of step {step} could not be written{where}: {reason}{last}") from None


class CheckpointFolder:
    """The checkpoints of a run in a local folder, named as ``checkpoint_00000120``.

    Args:
        folder: The run's folder.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def write(self, step: int, write: Write) -> Path:
        """Write a checkpoint atomically, then delete the oldest ones.

        Raises:
            UserError: the checkpoint could not be written (disk full, say); the last one stays.
        """
        path = self.folder / f"{PREFIX}{step:08d}"
        with checkpoint_failure(step, self), atomic_folder(path) as folder:
            write(folder)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def all(self) -> list[Path]:
        """Return the checkpoints, oldest first; some may be damaged (see `whole`)."""
        return sorted(path for path in self.folder.glob(f"{PREFIX}*") if path.is_dir())

    def latest(self) -> Path | None:
        """Return the newest checkpoint; None if there is none."""
        return next(reversed(self.all()), None)
