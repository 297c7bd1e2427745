"""Weight files: read state dicts, load them into a network, and identify a network by its tensors."""

import functools
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from metalora.errors import UserError
from metalora.missing import is_missing, no_such_path
from metalora.models.backbones.base import shapes_of
from metalora.reading import gate, short
from metalora.tensor_files import check_like, read_safetensors, read_torch

_log = logging.getLogger(__name__)
_NET = "net."  # a `Backbone` holds its network as ``net``


def state_hash(module: nn.Module) -> str:
    """Return a sha256 over the names, dtypes, shapes and bytes of a module's state dict, in hexadecimal.

    It is the identity of a frozen backbone in adapter files. Device and memory format do not matter.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict file, without ever unpickling objects."""
    what = f"weights file {str(file)!r}"
    if is_missing(file):
        raise UserError(no_such_path(file, "weights"))
    tensors = (read_safetensors if file.suffix.lower() == ".safetensors" else read_torch)(file, what)
    if not isinstance(tensors, dict):
        raise UserError(f"{what} holds a {type(tensors).__name__}, not a state dict")
    for key, value in tensors.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            raise UserError(
                f"{what} holds a {type(value).__name__} under {short(key)}: "
                "a state dict holds tensors only, by name (save the model's state_dict() by itself)"
            )
    return tensors


def load_weights(net: nn.Module, whole: Mapping[str, torch.Size], tensors: dict[str, Tensor], what: str) -> None:
    """Load tensors into a network without classifier; ``whole`` has the shapes with the classifier's.

    The state dict of a `Backbone` is that of its network, with names below ``net``.
    """
    own = shapes_of(net)
    if all(name.startswith(_NET) for name in tensors) and not tensors.keys() & whole.keys():
        tensors = {name.removeprefix(_NET): tensor for name, tensor in tensors.items()}
    if not tensors.keys() & whole.keys():
        tensors = _by_order(own, whole, tensors, what)
    tensors = {name: tensor for name, tensor in tensors.items() if name in own or name not in whole}
    with gate(what):
        for name, tensor in net.state_dict().items():
            if name in tensors:
                check_like(tensors[name], tensor, name)
    problems = net.load_state_dict(tensors, strict=False)
    for kind, names in (("lack", problems.missing_keys), ("have an unknown", problems.unexpected_keys)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{what} {kind} tensor {short(names[0])}{more}")


def _by_order(
    own: Mapping[str, torch.Size], whole: Mapping[str, torch.Size], tensors: dict[str, Tensor], what: str
) -> dict[str, Tensor]:
    """Rename tensors that have, in order, the shapes of the network with or without its classifier."""
    shapes = [tensor.shape for tensor in tensors.values()]
    for wanted in (whole, own):
        if shapes == list(wanted.values()):
            _tell_once(f"{what}: no name is the network's, but all shapes are, in order: loaded by order")
            return dict(zip(wanted, tensors.values(), strict=True))
    raise UserError(
        f"{what}: no tensor has a name of the network, and their {len(shapes)} shapes are not, in order, "
        f"its {len(whole)} (first name met: {short(next(iter(tensors), None))}, wanted: {next(iter(whole))!r})"
    )


@functools.cache
def _tell_once(text: str) -> None:
    """Log a warning, once in a process: a file may be loaded as backbone and as extractor."""
    _log.warning(text)
