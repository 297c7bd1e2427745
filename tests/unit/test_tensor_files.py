import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from metalora.errors import UserError
from metalora.tensor_files import check_like, read_safetensors, read_torch

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": OrderedDict(c=torch.tensor(3)), "d": [1, 2.5, "e", None, (True,)]}


@pytest.fixture(params=["zip", "legacy"])
def file(request, tmp_path):
    torch.save(STATE, tmp_path / "s.pt", _use_new_zipfile_serialization=request.param == "zip")
    return tmp_path / "s.pt"


def test_what_torch_saves_is_read(file):
    state = read_torch(file, "state")
    assert torch.equal(state["a"], STATE["a"])
    assert state["b"]["c"].item() == 3
    assert state["d"] == STATE["d"]


def test_another_pickle_protocol_is_read_or_refused_in_a_line(tmp_path):
    torch.save(STATE, tmp_path / "3.pt", pickle_protocol=3)
    assert torch.equal(read_torch(tmp_path / "3.pt", "state")["a"], STATE["a"])
    torch.save(STATE, tmp_path / "4.pt", pickle_protocol=4)
    with pytest.raises(UserError, match="or of another pickle protocol than torch"):
        read_torch(tmp_path / "4.pt", "state")


def test_a_changed_bit_of_an_archive_is_noticed_or_changes_nothing(tmp_path):
    torch.save(STATE, tmp_path / "s.pt")
    whole, noticed = (tmp_path / "s.pt").read_bytes(), 0
    for place in range(0, len(whole), 3):
        (tmp_path / "s.pt").write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            state = read_torch(tmp_path / "s.pt", "state")
        except UserError:
            noticed += 1
        else:  # padding, times, flags that nobody reads
            assert torch.equal(state["a"], STATE["a"])
            assert state["d"] == STATE["d"]
    assert noticed > len(whole) / 3 / 4


class Evil:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize(
    "value", [Evil(print, "ran"), Evil(bytearray, 10**12), Evil(torch.FloatTensor, 10), torch.nn.Linear(2, 2), {1, 2}]
)
def test_what_is_no_tensor_and_no_plain_value_is_not_made(value, archive, tmp_path, capsys):
    torch.save({"a": value}, tmp_path / "s.pt", _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError, match=r"state cannot be read: it is no file of tensors alone: it names '"):
        read_torch(tmp_path / "s.pt", "state")
    assert capsys.readouterr().out == ""


def test_a_plain_pickle_is_no_file_of_torch(tmp_path):
    (tmp_path / "s.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="state cannot be read: "):
        read_torch(tmp_path / "s.pt", "state")


def test_compressed_archives_are_refused(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "s.pt")
    with (
        zipfile.ZipFile(tmp_path / "s.pt") as old,
        zipfile.ZipFile(tmp_path / "t.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(UserError, match="it is compressed"):
        read_torch(tmp_path / "t.pt", "state")


def poison(tmp_path, number):
    """An archive of a state, and another, that says ``number``."""
    for name, value in (("good", 1.0), ("evil", float(number))):
        torch.save({"a": torch.full((3,), value)}, tmp_path / f"{name}.pt")
    return (tmp_path / "good.pt").read_bytes(), (tmp_path / "evil.pt").read_bytes()


def test_every_flag_of_an_archive_is_noticed_or_changes_nothing(tmp_path):
    torch.save(STATE, tmp_path / "s.pt")
    data = (tmp_path / "s.pt").read_bytes()
    for place in range(zipfile.ZipFile(tmp_path / "s.pt").start_dir, len(data)):
        for bit in range(8):
            (tmp_path / "s.pt").write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            try:
                state = read_torch(tmp_path / "s.pt", "state")
            except UserError:
                continue
            assert torch.equal(state["a"], STATE["a"])
            assert state["d"] == STATE["d"]


def test_what_is_loaded_is_what_was_checked(tmp_path):
    good, evil = poison(tmp_path, 7)
    torch.save({"a": torch.full((3,), 7.0)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "both.pt").write_bytes((tmp_path / "legacy.pt").read_bytes() + good)
    assert read_torch(tmp_path / "both.pt", "state")["a"].tolist() == [1, 1, 1]
    with zipfile.ZipFile(tmp_path / "good.pt", "a") as archive:
        archive.writestr("good/DATA.PKL", zipfile.ZipFile(io.BytesIO(evil)).read("evil/data.pkl"))
    with pytest.raises(UserError, match="it has a part twice"):
        read_torch(tmp_path / "good.pt", "state")


def lists(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def endless():
    value = []
    value.append(value)
    return value


def shared():
    value = ["x"]
    for _ in range(30):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lists(100), "nested in more than 64 levels"),
        (endless(), "nested in more than 64 levels"),
        (shared(), "it holds more than 100000 values"),
        (torch.zeros(1).expand(10**13), r"tensor 'a' of shape \(1000\d*,\) is larger than the file"),
        ({"b": torch.tensor([1, math.inf])}, r"tensor 'a\.b' holds numbers that are not finite"),
        (torch.tensor(math.nan, dtype=torch.bfloat16), "tensor 'a' holds numbers that are not finite"),
        (torch.tensor([1e38] * 100 + [math.inf]), "tensor 'a' holds numbers that are not finite"),
    ],
)
def test_values_that_are_refused(value, message, tmp_path):
    torch.save({"a": value}, tmp_path / "s.pt")
    with pytest.raises(UserError, match=message):
        read_torch(tmp_path / "s.pt", "state")


def test_large_numbers_are_finite_though_their_sum_is_not(tmp_path):
    large = torch.full((100,), 1e38), torch.full((100,), 1e308, dtype=torch.float64), torch.full((9,), 6e4).half()
    torch.save(large, tmp_path / "s.pt")
    assert all(map(torch.equal, read_torch(tmp_path / "s.pt", "state"), large))


def safetensors(header, data=b""):
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63),
        safetensors(b"{"),
        safetensors(b'{"a": {"dtype": "F32", "shape": [0, %d, %d], "data_offsets": [0, 0]}}' % (2**63, 2**63)),
        safetensors(b'{"a": {"dtype": "F32", "shape": [%d, 2], "data_offsets": [0, 0]}}' % (2**63 - 1)),
        safetensors(b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
        safetensors(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', struct.pack("<f", math.nan)),
        safetensors(b'{"a": ' + b"[" * 10**5 + b"}"),
    ],
)  # fmt: skip
def test_safetensors_that_are_refused(content, tmp_path):
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="tensors cannot be read: ") as error:
        read_safetensors(tmp_path / "t.safetensors", "tensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("met", [torch.zeros(3).half(), torch.zeros(3).double(), torch.zeros(3).bfloat16()])
def test_floats_are_alike(met):
    check_like(met, torch.zeros(3), "a")


@pytest.mark.parametrize("met", [torch.zeros(3, dtype=torch.int32), torch.zeros(3) > 0, torch.zeros(3) * 1j])
def test_other_numbers_are_not(met):
    with pytest.raises(UserError, match="tensor 'a' is of type"):
        check_like(met, torch.zeros(3), "a")


def test_pipes_are_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    for read in (read_torch, read_safetensors):
        with pytest.raises(UserError, match="it is a pipe or a device"):
            read(tmp_path / "pipe", "tensors")
