"""Adapter files: ``adapter.safetensors`` and ``adapter.json`` in one folder. No pickle.

``adapter.json`` has, beside the description, the SHA-256 of both: of the tensors' file, then the description without
``sha256`` itself, as JSON with sorted keys and no spaces.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalora.errors import UserError
from metalora.files import atomic_folder
from metalora.reading import read_json, short
from metalora.tensor_files import read_safetensors

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
        said = {"file_version": FILE_VERSION, **description}
        text = json.dumps({**said, "sha256": _sha256(folder, said)}, indent=2)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def read_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_adapter` wrote.

    Raises:
        UserError: a file is missing, unreadable or damaged, or of another file version.
    """
    description = read_description(path)
    digest = description.pop("sha256", None)  # older code wrote none
    if digest is not None and digest != _sha256(path, description):
        raise UserError(
            f"adapter {path} is damaged: its files are not those that were written (SHA-256); fetch it again "
            f"(or, if you changed {DESCRIPTION} yourself, take its line sha256 out)"
        )
    return read_safetensors(path / TENSORS, f"adapter {path}: {TENSORS}"), description


def read_description(path: Path) -> dict[str, Any]:
    """Read an adapter's ``adapter.json``, of which `read_adapter` checks that it belongs to the tensors.

    Raises:
        UserError: a file is missing, or this one is unreadable or of another file version.
    """
    for name in (TENSORS, DESCRIPTION):
        if not (path / name).is_file():
            raise UserError(f"{path} is no adapter folder: {name} is missing")
    description: dict[str, Any] = read_json(path / DESCRIPTION, f"adapter {path}: {DESCRIPTION}")
    version = description.get("file_version")
    if version != FILE_VERSION:
        raise UserError(f"adapter {path} has file version {short(version)}; this metalora reads {FILE_VERSION}")
    return description


def _sha256(folder: Path, description: Mapping[str, Any]) -> str:
    with (folder / TENSORS).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(json.dumps(description, sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()
