"""Adapter files: ``adapter.safetensors`` and ``adapter.json`` in one folder. No pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalora.errors import UserError
from metalora.files import atomic_folder

TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"
FILE_VERSION = 1


def write_adapter(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write an adapter's tensors and description; an existing adapter is replaced atomically.

    Raises:
        UserError: there is something else at ``path``.
    """
    from safetensors.torch import save_file

    if path.exists() and not (path / DESCRIPTION).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is no adapter folder: it would be replaced, so choose another name")
    with atomic_folder(path) as folder:
        # clones, since a file takes no two tensors that share memory
        plain = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
        save_file(plain, folder / TENSORS)
        text = json.dumps({"file_version": FILE_VERSION, **description}, indent=2)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def read_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_adapter` wrote.

    Raises:
        UserError: a file is missing or unreadable, or of another file version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (TENSORS, DESCRIPTION):
        if not (path / name).is_file():
            raise UserError(f"{path} is no adapter folder: {name} is missing")
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        state = load_file(path / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"adapter {path} cannot be read: {error}") from None
    version = description.get("file_version") if isinstance(description, dict) else None
    if version != FILE_VERSION:
        raise UserError(f"adapter {path} has file version {version!r}; this metalora reads {FILE_VERSION}")
    return state, description
