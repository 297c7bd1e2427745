"""Changes of a safetensors file that leave it one: other types, shapes, names and numbers."""

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.fuzz.mutators import change_value, dump
from tests.fuzz.surface import Expect

ODD_SHAPES = (
    [0, 2**63, 2**63],
    [2**63],
    [2**40, 2**40],
    [0],
    [],
    [-1],
    [1.5],
    [2**31, 2],
    ["1"],
    [[1]],
    None,
    [0, 2**32],
)
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)


def change_tensors(random: Random, file: Path, dtype: Expect = Expect.REFUSED) -> tuple[str, Expect]:
    """Change a file of tensors whose reader knows which it wants; return what was done and what may come of it.

    Args:
        random: Draws the change.
        file: The file.
        dtype: What may come of a tensor of another type.
    """
    expect = Expect.REFUSED
    kind = random.choice(("header", "shape", "values", "dtype", "reshape", "names"))
    if kind == "header":
        return _change_header(random, file), Expect.ANY
    if kind == "shape":
        return _odd_shape(random, file), Expect.REFUSED
    tensors = load_file(file)
    name = random.choice(sorted(tensors))
    tensor = tensors[name]
    if kind == "values":
        bad = random.choice((float("nan"), float("inf"), float("-inf")))
        floats = [name for name, tensor in sorted(tensors.items()) if tensor.is_floating_point()]
        name = random.choice(floats)
        tensors[name].view(-1)[random.randrange(tensors[name].numel())] = bad
        recipe = f"a {bad} in {name}"
    elif kind == "dtype":
        tensors[name] = tensor.to(random.choice([dtype for dtype in DTYPES if dtype != tensor.dtype]))
        recipe = f"{name} as {tensors[name].dtype}"
        expect = dtype
    elif kind == "reshape":
        shapes = (tensor[None], tensor.reshape(-1, 1, 1), tensor.reshape(-1)[:-1], torch.cat([tensor.reshape(-1)] * 2))
        tensors[name] = random.choice([t for t in shapes if t.shape != tensor.shape]).clone()
        recipe = f"{name} of shape {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
    else:
        other = random.choice((f"{name}.x", "", "x" * 10**5, "../x", "\0"))
        tensors[other] = tensors.pop(name) if random.random() < 0.5 else tensor.clone()
        recipe = f"{other[:40]!r} for or beside {name}"
    save_file(tensors, file)
    return f"{file.name}: {recipe}", expect


def _split(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _join(file: Path, header: Any, content: bytes) -> None:
    text = dump(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content)


def _change_header(random: Random, file: Path) -> str:
    header, content = _split(file)
    header, recipe = change_value(random, header)
    _join(file, header, content)
    return f"{file.name}: header: {recipe}"


def _odd_shape(random: Random, file: Path) -> str:
    header, content = _split(file)
    name = random.choice(sorted(set(header) - {"__metadata__"}))
    shape = random.choice([shape for shape in ODD_SHAPES if shape != header[name]["shape"]])
    if random.random() < 0.5:  # nothing of the file belongs to it, which its format allows
        header[name if random.random() < 0.5 else "more"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    else:
        header[name]["shape"] = shape
    _join(file, header, content)
    return f"{file.name}: {name} of shape {shape}"
