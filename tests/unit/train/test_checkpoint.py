import random

import numpy as np
import pytest
import torch

from metalora.errors import UserError
from metalora.train.checkpoint import (
    CheckpointFolder,
    generator_states,
    read_state,
    restore_generators,
    seed_everything,
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


def test_a_cut_off_checkpoint_is_none(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.write(5, writer(5))
    damaged = checkpoints.write(10, writer(10)) / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert checkpoints.latest().name == "checkpoint_00000005"
    with pytest.raises(UserError, match="cannot be read"):
        read_state(damaged.parent)


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
