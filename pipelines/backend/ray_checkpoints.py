"""Ray's checkpoints, and Ray Train's own record of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired

import ray
from typing_extensions import TypedDict

from metalora.errors import UserError
from metalora.reading import read_json
from metalora.train.checkpoint import CheckpointFolder

RAY_STATE = "checkpoint_manager_snapshot.json"


@contextmanager
def opened(checkpoint: Any) -> Iterator[Path]:
    """Copy one of Ray's checkpoints to this machine if needed, and yield its folder."""
    with checkpoint.as_directory() as folder:
        yield Path(folder)


class _Result(TypedDict):
    checkpoint_dir_name: str


class _RayState(TypedDict):
    """The form of Ray Train's note of its checkpoints, as far as its names are concerned."""

    ray_version: str
    checkpoint_results: list[_Result]
    latest_checkpoint_result: NotRequired[_Result | None]
    pending_training_results: list[_Result]


def drop_unusable(state: Path) -> None:
    """Remove Ray Train's record of its checkpoints unless this Ray can use it; our checkpoints are found without it.

    A full disk may have cut it off. A stranger's record may name folders elsewhere, which Ray would remove as old ones.
    """
    if not os.path.lexists(state):
        return
    try:
        note: _RayState = read_json(state, f"Ray's note {state}", _RayState)
        results = [*note["checkpoint_results"], *note["pending_training_results"], note.get("latest_checkpoint_result")]
        names = [result["checkpoint_dir_name"] for result in results if result is not None]
        there = {path.name for path in CheckpointFolder(state.parent).all()}
        usable = not state.is_symlink() and note["ray_version"] == ray.__version__ and set(names) <= there
    except UserError:
        usable = False
    if not usable:
        state.unlink()
