"""Adapter files: ``adapter.safetensors`` and ``adapter.json`` in one folder. No pickle.

Beside the description, ``adapter.json`` has one SHA-256 over both: the bytes of the tensors' file, followed by the
description without ``sha256`` itself, as JSON with sorted keys and no spaces.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalora.errors import UserError
from metalora.files import atomic_folder
from metalora.limits import limits
from metalora.reading import gate, parse_json, short
from metalora.tensor_files import parse_safetensors

TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"
FILE_VERSION = 2
READABLE = (1, 2)
ATTEMPTS = 10  # to read an adapter that is being replaced


def write_adapter(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write the tensors and the description of an adapter; an existing adapter is replaced atomically.

    Raises:
        UserError: ``path`` exists and is not an adapter folder.
    """
    from safetensors.torch import save_file

    with gate(f"adapter {path}"), suppress(FileNotFoundError):
        path.stat()
    if path.exists() and not (path / DESCRIPTION).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is no adapter folder: it would be replaced, so choose another name")
    with atomic_folder(path) as folder:
        # clones, since a file takes no two tensors that share memory
        plain = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
        save_file(plain, folder / TENSORS)
        said = {"file_version": FILE_VERSION, **description}
        text = json.dumps({**said, "sha256": _sha256((folder / TENSORS).read_bytes(), said)}, indent=2)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def read_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the description of an adapter, also while another process replaces it.

    Raises:
        UserError: a file is missing, unreadable or damaged, or of another file version.
    """
    tensors, description = _read_both(path)
    digest = description.pop("sha256", None)  # older code wrote none
    if digest is not None and digest != _sha256(tensors, description):
        raise UserError(
            f"adapter {path} is damaged: its files are not those that were written (SHA-256); fetch it again "
            f"(or, if you changed {DESCRIPTION} yourself, take its line sha256 out)"
        )
    return parse_safetensors(tensors, f"adapter {path}: {TENSORS}"), description


def read_description(path: Path) -> dict[str, Any]:
    """Read the ``adapter.json`` of an adapter; only `read_adapter` checks that it belongs to the tensors.

    Raises:
        UserError: a file is missing, unreadable, or of another file version.
    """
    return _read_both(path)[1]


def _read_both(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the tensors' file and the parsed description."""
    with gate(f"adapter {path}"):
        for attempt in range(ATTEMPTS):
            try:
                tensors, text = _of_one_folder(path)
                break
            except FileNotFoundError as error:
                if attempt == ATTEMPTS - 1:
                    name = DESCRIPTION if error.filename == DESCRIPTION else TENSORS
                    raise UserError(f"{path} is no adapter folder: {name} is missing") from None
                time.sleep(0.001 * attempt)
            except NotADirectoryError:
                raise UserError(f"{path} is no adapter folder: it is a file") from None
    description: dict[str, Any] = parse_json(text, f"adapter {path}: {DESCRIPTION}")
    version = description.get("file_version")
    if version not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise UserError(f"adapter {path} has file version {short(version)}; this metalora reads {known}")
    return tensors, description


def _of_one_folder(path: Path) -> tuple[bytes, bytes]:
    """Return the content of both files, opened from a folder that stays the same when another takes its name."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        tensors, text = (os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=folder) for name in (TENSORS, DESCRIPTION))
    finally:
        os.close(folder)
    with os.fdopen(tensors, "rb") as first, os.fdopen(text, "rb") as second:
        for name, stream in ((TENSORS, first), (DESCRIPTION, second)):
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ValueError(f"{name} is no file")
        most = limits().text_bytes
        if os.fstat(text).st_size > most:
            raise ValueError(f"{DESCRIPTION} has more than {most} bytes")
        return first.read(), second.read()


def _sha256(tensors: bytes, description: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(tensors)
    digest.update(json.dumps(description, sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()
