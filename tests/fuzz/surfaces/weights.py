"""Files of a backbone's weights, read by ``metalora.build_backbone(NAME, FILE)``."""

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file

import metalora
from tests.fuzz.mutators import VALUES, change_file, replace_file
from tests.fuzz.surface import Expect, Mutation, Surface
from tests.fuzz.surfaces.tensors import DTYPES, change_tensors


def make(seeds: Path) -> Callable[[Path], object]:
    """Save a network's tensors in each format."""
    torch.manual_seed(0)
    state = metalora.build_backbone("resnet20", "none", 28).net.state_dict()
    for kind in ("safetensors", "pth", "pt"):
        (seeds / kind).mkdir(parents=True)
    save_file(state, seeds / "safetensors" / "weights.safetensors")
    torch.save(state, seeds / "pth" / "weights.pth")
    torch.save(state, seeds / "pt" / "weights.pt", _use_new_zipfile_serialization=False)

    def read(folder: Path) -> object:
        file = next(folder.iterdir(), folder / "weights.pth")
        return metalora.build_backbone("resnet20", str(file), 28).net.state_dict()

    return read


def mutate(random: Random, folder: Path) -> Mutation:
    """Change a file's bytes, or what it holds."""
    (file,) = folder.iterdir()
    kind = random.choice(("bytes", "bytes", "content", "content", "file"))
    if kind == "bytes":
        return Mutation(change_file(random, file), Expect.EITHER if file.suffix == ".pth" else Expect.ANY)
    if kind == "file":
        return Mutation(replace_file(random, file), Expect.EITHER)
    if file.suffix == ".safetensors":
        return Mutation(*change_tensors(random, file, dtype=Expect.ANY))
    if random.random() < 0.2:
        return Mutation(_write_code(random, file), Expect.REFUSED)
    return _change_state(random, file)


class _Code:
    """What runs a program when it is unpickled."""

    def __init__(self, outside: Path) -> None:
        self.outside = outside

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.outside}/ran",)


def _write_code(random: Random, file: Path) -> str:
    code = _Code(file.parents[1] / "outside")
    content = random.choice((code, {"a": code}, {code: torch.ones(1)}, [code]))
    if random.random() < 0.3:
        file.write_bytes(pickle.dumps(content))
        return "a pickle that runs a program"
    torch.save(content, file, _use_new_zipfile_serialization=file.suffix == ".pth")
    return "torch's file with a pickle that runs a program"


def _change_state(random: Random, file: Path) -> Mutation:
    state = torch.load(file, weights_only=True)
    name = random.choice(
        sorted(name for name, tensor in state.items() if tensor.ndim > 0 and tensor.is_floating_point())
    )
    tensor = state[name]
    odd: dict[str, tuple[Any, Expect]] = {
        "sparse": (tensor.to_sparse(), Expect.EITHER),
        "not contiguous": (tensor.T.contiguous().T if tensor.ndim == 2 else tensor.flip(0).flip(0), Expect.SAME),
        "a parameter": (torch.nn.Parameter(tensor), Expect.SAME),
        "huge by strides": (torch.zeros(1).expand(10**6, 10**6), Expect.REFUSED),
        "on no device": (tensor.to("meta"), Expect.REFUSED),
        "quantized": (torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), Expect.REFUSED),
        "nested": ({name: tensor}, Expect.REFUSED),
        "not finite": (
            torch.where(torch.arange(tensor.numel()).view_as(tensor) == 0, float("nan"), tensor),
            Expect.REFUSED,
        ),
        "of another type": (tensor.to(random.choice(DTYPES[:-1])), Expect.ANY),
        "complex": (tensor.to(torch.complex64), Expect.REFUSED),
        "of another shape": (tensor[None], Expect.REFUSED),
        "no tensor": (random.choice(VALUES), Expect.REFUSED),
    }
    kind = random.choice((*odd, "keys", "keys", "order", "list"))
    expect = Expect.REFUSED
    if kind in odd:
        state[name], expect = odd[kind]
    elif kind == "keys":
        kind = repr(
            key := random.choice((1, None, b"x", ("a", 1), "", "x" * 10**5, "\n", "\ud800", f"{name}.x", "../x"))
        )[:40]
        state[key] = state.pop(name) if random.random() < 0.5 else tensor
    elif kind == "order":
        state, expect = OrderedDict(reversed(state.items())), Expect.SAME
    else:
        state = random.choice((list(state.values()), tensor, {"state_dict": state, "epoch": 3}, {}, None, {1: state}))
    torch.save(state, file, _use_new_zipfile_serialization=file.suffix == ".pth")
    return Mutation(f"{name}: {kind}", expect)


surface = Surface("weights", make, mutate, named=("{folder}", "mutant/weights"))
