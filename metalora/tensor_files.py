"""Read files of tensors, also a stranger's: safetensors, and files of ``torch.save``. Nothing in them is run.

The results are dense, finite tensors in memory, none larger than the file: a tensor that is a view of one number can
claim any size. Files of ``torch.save`` are zip archives, in which the CRC-32 of every tensor is checked. Older files
are plain pickles, without a checksum.
"""

import io
import pickle
import pickletools
import warnings
import zipfile
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalora.errors import UserError
from metalora.limits import limits
from metalora.reading import check_plain, gate, short

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, names of the storages; then the storages
# what the pickle of tensors and plain values names; torch.load (weights_only) knows more, such as bytearray(10**12)
_NAMES = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
}


def read_safetensors(file: Path, what: str) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        file: The file.
        what: Name of the file in error messages.

    Raises:
        UserError: the file cannot be read, or holds numbers that are not finite.
    """
    from safetensors.torch import load_file

    with gate(what):
        check_plain(file)
        return _checked(load_file(file), file.stat().st_size)


def parse_safetensors(data: bytes, what: str) -> dict[str, Tensor]:
    """Read the bytes of a safetensors file; see `read_safetensors`."""
    from safetensors.torch import load

    with gate(what):
        return _checked(load(data), len(data))


def read_torch(file: Path, what: str) -> Any:
    """Read a file of ``torch.save`` that holds tensors, numbers, strings, None, and lists, tuples and dicts of these.

    Args:
        file: The file.
        what: Name of the file in error messages.

    Raises:
        UserError: the file cannot be read, is damaged, or holds something else.
    """
    with gate(what):
        check_plain(file)
        if zipfile.is_zipfile(file):
            source: Path | io.BytesIO = _checked_copy(file)
        else:
            source = file
            _check_legacy(file)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what such a file names was looked at above
            content = torch.load(source, map_location="cpu", weights_only=True)
        _measure(content, file.stat().st_size, "", {}, 0)
    return content


def check_like(met: Tensor, wanted: Tensor, name: str, exact: bool = False) -> None:
    """Check that a tensor can be loaded into another: same shape, and same type or both floats.

    Args:
        met: The tensor.
        wanted: The tensor to load it into.
        name: Name of the tensor in error messages.
        exact: Whether floats of another precision are refused.

    Raises:
        UserError: the tensor has another shape or type.
    """
    if met.shape != wanted.shape:
        raise UserError(f"tensor {short(name)} has shape {tuple(met.shape)}, not {tuple(wanted.shape)}")
    if met.dtype != wanted.dtype and (exact or not {met.dtype, wanted.dtype} <= set(FLOATS)):
        raise UserError(f"tensor {short(name)} is of type {met.dtype}, not {wanted.dtype}")


def _checked(tensors: dict[str, Tensor], most: int) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        _check(tensor, name, most)
    return tensors


def _check(tensor: Tensor, name: str, most: int) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"{short(name)} is no dense tensor of plain numbers")
    if tensor.numel() * tensor.element_size() > most:
        raise ValueError(f"tensor {short(name)} of shape {short(tuple(tensor.shape))} is larger than the file")
    if not _is_finite(tensor):
        raise ValueError(f"tensor {short(name)} holds numbers that are not finite")


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    numbers = (tensor.float() if half else tensor).detach().numpy()  # NumPy's sum does not wait for threads
    with np.errstate(all="ignore"):
        # where the sum is finite all are; it tells so many times faster than a look at each, but may overflow
        return bool(np.isfinite(numbers.sum()) or np.isfinite(numbers).all())


def _measure(value: Any, most: int, name: str, sizes: dict[int, int], depth: int) -> int:
    """Check a value, and return its number of single values, counting a shared value each time that it occurs."""
    if isinstance(value, Tensor):
        _check(value, name, most)
        return 1
    if value is None or isinstance(value, str | int | float):
        return 1
    if not isinstance(value, dict | list | tuple):
        raise ValueError(f"it holds a {type(value).__name__}{f' under {short(name)}' if name else ''}")
    if depth > limits().nesting or sizes.get(id(value)) == 0:
        raise ValueError(f"it is nested in more than {limits().nesting} levels")
    if id(value) not in sizes:
        sizes[id(value)] = 0  # being measured
        items = value.items() if isinstance(value, dict) else enumerate(value)
        total = 1 + sum(
            _measure(item, most, f"{name}.{key}" if name else str(key), sizes, depth + 1) for key, item in items
        )
        sizes[id(value)] = total
    if sizes[id(value)] > limits().values:
        raise ValueError(f"it holds more than {limits().values} values")
    return sizes[id(value)]


def _checked_copy(file: Path) -> io.BytesIO:
    """Return an archive's parts, each checked, as a new one: readers of zip differ in what they make of odd ones."""
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as new:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len({name.casefold() for name in names}) < len(names):  # torch takes no notice of case
            raise ValueError("it has a part twice")
        if any(entry.compress_type for entry in entries):
            raise ValueError("it is compressed; wanted: a file of torch.save")
        if sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise ValueError("its parts are larger than the file")
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is no file of torch.save")
        for name in names:
            part = _part(archive, name)
            if name == pickles[0]:
                _check_names(part)
            new.writestr(zipfile.ZipInfo(name), part)
    copy.seek(0)
    return copy


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is damaged: {short(name)} is not what was written ({error})") from None


def _check_legacy(file: Path) -> None:
    """Check each pickle in a file of older code; they lie one after another."""
    with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as content:  # allocates nothing
        if content[:1] != pickle.PROTO:
            raise ValueError("it is no file of torch.save")
        for _ in range(_LEGACY_PICKLES):
            _check_names(content)


def _check_names(content: Any) -> None:
    """Check that a pickle names only functions and classes that make tensors."""
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            storage = module in ("torch", "torch.storage") and name.endswith("Storage")
            if str(argument) not in _NAMES and not storage:
                raise ValueError(
                    f"it is no file of tensors alone: it names {short(str(argument))} (save a state_dict() by itself)"
                )
        elif operation.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise ValueError("it is no file of tensors alone, or of another pickle protocol than torch.save's own, 2")
