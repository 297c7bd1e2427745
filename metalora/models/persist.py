"""Saving adapters without their backbone, and putting them back on it."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from metalora.adapters.io import read_adapter, write_adapter
from metalora.errors import UserError
from metalora.models.assemble import AdapterSpec, MetaLoRAModel, assemble
from metalora.models.plain import identify, plain
from metalora.version import __version__


def save(model: nn.Module, path: str | Path) -> Path:
    """Write adapters, mapping net, head and saved modules to a folder, without the backbone.

    Args:
        model: A `MetaLoRAModel`; inside DDP or ``torch.compile`` is fine.
        path: The folder; replaced atomically if it exists.

    Returns:
        The folder.

    Raises:
        UserError: not a `MetaLoRAModel`.
    """
    model = unwrap(model)
    description = {
        "versions": {"metalora": __version__, "torch": str(torch.__version__)},
        "backbone": model.backbone_identity,
        "extractor": model.extractor_identity,
        "spec": dataclasses.asdict(model.spec),
    }
    write_adapter(Path(path), model.adapter_state(), description)
    return Path(path)


def load(backbone: nn.Module, path: str | Path, extractor: nn.Module | None = None) -> MetaLoRAModel:
    """Put a saved adapter on a copy of its backbone.

    Args:
        backbone: The backbone the adapter was trained on, without adapters.
        path: The folder that `save` wrote.
        extractor: The extractor network, if it was not the backbone itself.

    Raises:
        UserError: no adapter there, another backbone or extractor (by a hash of its tensors), or a tensor is
            missing, extra or misshapen.
    """
    state, description = read_adapter(Path(path))
    try:
        spec = TypeAdapter(AdapterSpec).validate_python(description["spec"])
        identity = TypeAdapter(dict[str, Any] | None)
        wanted = {part: identity.validate_python(description[part]) for part in ("backbone", "extractor")}
    except (KeyError, ValidationError) as error:
        raise UserError(f"adapter {path}: its description is incomplete: {error}") from None
    backbone = plain(backbone)
    extractor = None if extractor is None else plain(extractor, "extractor")
    for part, network in (("backbone", backbone), ("extractor", extractor)):
        met, want = None if network is None else identify(network), wanted[part]
        if (met or {}).get("hash") != (want or {}).get("hash"):
            raise UserError(f"adapter {path} was trained with {part} {_name(want)}, this is {_name(met)}")
    model = assemble(backbone, spec, extractor)
    model.load_adapter_state(state)
    return model.eval()


def unwrap(model: nn.Module) -> MetaLoRAModel:
    """Take a model out of DDP and ``torch.compile``.

    Raises:
        UserError: there is no `MetaLoRAModel` inside.
    """
    inner: object = model
    while not isinstance(inner, MetaLoRAModel):
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if inner is None:
            raise UserError(f"{type(model).__name__} is no MetaLoRA model: pass what metalora.adapt returned")
    return inner


def _name(identity: dict[str, Any] | None) -> str:
    if identity is None:
        return "the backbone itself"
    name, weights, digest = (str(identity.get(key)) for key in ("name", "weights", "hash"))
    return f"{name} (weights {weights}, hash {digest[:12]})"
