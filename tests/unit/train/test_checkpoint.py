import random
import re

import numpy as np
import pytest
import torch

from metalora.errors import UserError
from metalora.files import seal
from metalora.train.checkpoint import (
    CheckpointFolder,
    generator_states,
    read_state,
    restore_generators,
    seed_everything,
    whole,
    write_state,
)


def writer(value):
    return lambda folder: write_state(folder, {"value": torch.full((1000,), float(value))})


def test_keeps_the_newest(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep=2)
    for step in (5, 10, 100):
        checkpoints.write(step, writer(step))
    assert [path.name for path in checkpoints.all()] == ["checkpoint_00000010", "checkpoint_00000100"]
    assert read_state(checkpoints.latest())["value"][0] == 100


def test_a_full_disk_keeps_the_last_good_one(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.write(5, writer(5))

    def full(folder):
        (folder / "state.pt").symlink_to("/dev/full")
        write_state(folder, {"value": torch.zeros(1_000_000)})

    with pytest.raises(UserError, match=r"step 10 could not be written .* last good one: .*checkpoint_00000005"):
        checkpoints.write(10, full)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_00000005"]
    assert read_state(checkpoints.latest())["value"][0] == 5


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-100])


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [cut_off, flipped, lambda file: file.unlink()])
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "older"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, harm, sealed):
    checkpoints = CheckpointFolder(tmp_path, keep=3)
    for step in (5, 10, 15):
        folder = checkpoints.write(step, writer(step))
        if sealed:
            seal(folder)
    said = []
    assert whole(checkpoints.latest(), said.append) == checkpoints.latest()
    assert said == []
    harm(folder / "state.pt")
    before = whole(checkpoints.latest(), said.append)
    assert before.name == "checkpoint_00000010"
    assert read_state(before)["value"][0] == 10
    assert len(said) == 1
    assert re.search(r"checkpoint \S*checkpoint_00000015 .*(damaged|cannot be read).*; it is left out", said[0])
    for path in checkpoints.all():
        (path / "state.pt").write_bytes(b"")
    assert whole(checkpoints.latest(), said.append) is None


def test_every_file_of_a_sealed_checkpoint_is_checked(tmp_path):
    folder = CheckpointFolder(tmp_path).write(5, writer(5))
    (folder / "knn.json").write_text('{"adapted": 0.5}')
    seal(folder)
    read_state(folder)
    (folder / "knn.json").write_text('{"adapted": 0.7}')
    with pytest.raises(UserError, match=r"checkpoint_00000005 is damaged: knn\.json is not what was written"):
        read_state(folder)


def test_generators_go_on_where_they_were(tmp_path):
    seed_everything(3)
    write_state(tmp_path, {"generators": generator_states(torch.device("cpu"))})
    drawn = [random.random(), np.random.rand(), torch.rand(3).tolist(), np.random.randn(), random.gauss(0, 1)]
    seed_everything(4)
    restore_generators(read_state(tmp_path)["generators"], torch.device("cpu"))
    again = [random.random(), np.random.rand(), torch.rand(3).tolist(), np.random.randn(), random.gauss(0, 1)]
    assert again == drawn


def test_state_runs_no_code(tmp_path):
    torch.save({"evil": print}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="cannot be read"):
        read_state(tmp_path)
