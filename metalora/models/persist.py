"""Save adapters without their backbone, and load them onto it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor, nn

from metalora.adapters.files import DESCRIPTION, TENSORS, read_adapter, read_description, write_adapter
from metalora.config import current_names
from metalora.errors import UserError
from metalora.models.adapt import assemble
from metalora.models.mapping import mapping_size, seed_layout
from metalora.models.model import MetaLoRAModel
from metalora.models.plain import identify, plain
from metalora.models.spec import AdapterSpec
from metalora.reading import check_form, gate, short
from metalora.version import __version__

SLACK = 2**20  # numbers that an adapter may describe beyond those of its file: which is missing is then told by name


@dataclass(frozen=True)
class Identity:
    """The identity of a network, as `identify` describes it."""

    name: str
    weights: str
    input_size: tuple[int, ...] | None
    hash: str


@dataclass(frozen=True)
class Description:
    """The content of ``adapter.json``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    file_version: int
    versions: dict[str, str]
    backbone: Identity
    extractor: Identity | None
    spec: AdapterSpec
    sha256: str | None = None


def save(model: nn.Module, path: str | Path) -> Path:
    """Write adapters, mapping net, head and saved modules to a folder, without the backbone.

    >>> import metalora, tempfile
    >>> model = metalora.adapt(metalora.build_backbone("resnet20", "none"), "lora", rank=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = metalora.save(model, f"{folder}/adapter")
    ...     sorted(file.name for file in path.iterdir())
    ['adapter.json', 'adapter.safetensors']

    Args:
        model: A `MetaLoRAModel`; it may be inside DDP or ``torch.compile``.
        path: The folder; an existing adapter is replaced atomically.

    Returns:
        The folder.

    Raises:
        UserError: the model is no `MetaLoRAModel`, or ``path`` exists and is not an adapter folder.
    """
    model = unwrap(model)
    description = {
        "versions": {"metalora": __version__, "torch": str(torch.__version__)},
        "backbone": model.backbone_identity,
        "extractor": model.extractor_identity,
        "spec": TypeAdapter(AdapterSpec).dump_python(model.spec, mode="json"),
    }
    write_adapter(Path(path), model.adapter_state(), description)
    return Path(path)


def load(backbone: nn.Module, path: str | Path, extractor: nn.Module | None = None) -> MetaLoRAModel:
    """Load a saved adapter onto a copy of its backbone.

    >>> import metalora, tempfile
    >>> backbone = metalora.build_backbone("resnet20", "none")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = metalora.save(metalora.adapt(backbone, "cp", rank=2), f"{folder}/adapter")
    ...     metalora.load(backbone, path).spec.format.name
    'cp'

    Args:
        backbone: The backbone that the adapter was trained on, without adapters.
        path: The folder that `save` wrote.
        extractor: The extractor network, if it was not the backbone itself.

    Raises:
        UserError: the folder has no adapter, the backbone or extractor is another one (by a hash of its tensors), or
            a tensor is missing, extra or of another shape.
    """
    state, content = read_adapter(Path(path))
    description = described(Path(path), content)
    backbone = plain(backbone)
    extractor = None if extractor is None else plain(extractor, "extractor")
    for part, network in (("backbone", backbone), ("extractor", extractor)):
        met = None if network is None else Identity(**identify(network))
        want: Identity | None = getattr(description, part)
        if (met and met.hash) != (want and want.hash):
            raise UserError(f"adapter {path} was trained with {part} {_name(want)}, this is {_name(met)}")
    with gate(f"adapter {path}"):
        description.spec.check(backbone, extractor)
        _check_extent(backbone, description.spec, state)
        model = assemble(backbone, description.spec, extractor)
        model.load_adapter_state(state)
    return model.eval()


def describe(path: Path) -> Description:
    """Read the ``adapter.json`` of an adapter folder.

    Raises:
        UserError: the file cannot be read, or lacks something.
    """
    return described(path, read_description(path))


def described(path: Path, content: dict[str, Any]) -> Description:
    what = f"adapter {path}: {DESCRIPTION}"
    if content.get("file_version") == 1 and isinstance(spec := content.get("spec"), dict):
        older = {"format": spec.get("format"), "branches": spec.pop("branches", None)}
        spec |= current_names("adapter", older)
    description: Description = check_form(content, Description, what)
    return description


def _check_extent(backbone: nn.Module, spec: AdapterSpec, state: Mapping[str, Tensor]) -> None:
    """Check, before anything is made, that a spec describes no more numbers than there are, or nearly.

    Raises:
        UserError: it describes far more.
    """
    there = sum(tensor.numel() for tensor in state.values())
    most = 2 * there + SLACK
    format, shapes = spec.make_format(), spec.shapes(backbone)
    described = max(map(format.channels, shapes.values()))
    if described <= most:  # else even a seed is too much
        described = sum(map(format.size, shapes.values()))
        described += spec.feature_size * len(spec.labels)
    if described <= most and format.seed == "generated":
        seeds = seed_layout(format, shapes, spec.seed_scope)[1].numel()
        described += mapping_size(spec.condition_size, seeds, spec.mapping_depth, spec.mapping_width)
    if described > most:
        raise UserError(f"{DESCRIPTION} describes {described} numbers or more, {TENSORS} holds {there}")


def unwrap(model: nn.Module) -> MetaLoRAModel:
    """Return the `MetaLoRAModel` inside DDP and ``torch.compile``.

    Raises:
        UserError: there is no `MetaLoRAModel` inside.
    """
    inner: object = model
    while not isinstance(inner, MetaLoRAModel):
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if inner is None:
            raise UserError(f"{type(model).__name__} is no MetaLoRA model: pass what metalora.adapt returned")
    return inner


def _name(identity: Identity | None) -> str:
    if identity is None:
        return "the backbone itself"
    name, weights = (text if len(text) <= 200 else short(text) for text in (identity.name, identity.weights))
    return f"{name} (weights {weights}, hash {identity.hash[:12]})"
