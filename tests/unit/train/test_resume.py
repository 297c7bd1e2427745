"""Checkpoints that are whole, but not of this training, or of none."""

import math

import pytest
import torch

from metalora.errors import UserError
from metalora.files import SUMS, seal
from metalora.train.checkpoint import read_state, write_state


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Where a training's checkpoint is, once there is one."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def resume(make_trainer, interrupted, tmp_path):
    """Change the state of an interrupted training's checkpoint, and go on from it."""
    if not list(interrupted.iterdir()):
        make_trainer(interrupted).fit()
    first = min(interrupted.iterdir())

    def resume(change):
        state = read_state(first)
        change(state)
        folder = tmp_path / "changed"
        folder.mkdir()
        write_state(folder, state)
        seal(folder)
        trainer = make_trainer(tmp_path / "out")
        trainer.fit(folder)
        return trainer

    return resume


def moments(state, index=0):
    return state["optimizer"]["state"][index]


def group(state):
    return state["optimizer"]["param_groups"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(step=-5), r"step = -5: input should be greater than or equal to 0"),
        (lambda s: s.update(step=10**6), r"step 1000000 is beyond the last one of this training"),
        (lambda s: s.update(step="3"), r"step = '3'"),
        (lambda s: s.update(step=True), r"step = True"),
        (lambda s: s["model"].update({"head.bias": s["model"]["head.bias"].double()}), r"is of type torch\.float64"),
        (lambda s: moments(s).update(exp_avg=moments(s)["exp_avg"].half()), r"is of type torch\.float16"),
        (lambda s: s.pop("step"), r"step = .*: field required"),
        (lambda s: s.update(data="0" * 32), r"the data differ"),
        (lambda s: s.update(networks=["0" * 64, None]), r"the tensors of backbone or extractor differ"),
        (lambda s: s["settings"].update({"train.lr": 1.0}), r"train\.lr was 1\.0, is 0\.003"),
        (lambda s: s["settings"].update({"train.lr": "x" * 10**6}), r"train\.lr was 'xxx.*\.\.\..*, is 0\.003"),
        (lambda s: s.update(settings=[1]), r"settings = \[1\]"),
        (lambda s: s["model"].popitem(), r"tensor '.*' is missing"),
        (lambda s: s["model"].update(extra=torch.zeros(1)), r"tensor 'extra' is not part of this model"),
        (lambda s: s["model"].update({"head.bias": torch.zeros(7)}), r"'head\.bias' has shape \(7,\)"),
        (lambda s: s["model"].update({"head.bias": 3}), r"model\.head\.bias = 3"),
        (lambda s: s["model"]["head.bias"].fill_(math.nan), r"'model\.head\.bias' holds numbers that are not finite"),
        (lambda s: moments(s).update(exp_avg=torch.zeros(7)), r"'optimizer\.state\.0\.exp_avg' has shape \(7,\)"),
        (lambda s: moments(s)["exp_avg_sq"].neg_().sub_(1), r"optimizer\.state\.0\.exp_avg_sq has values below 0"),
        (lambda s: moments(s)["exp_avg"].fill_(math.inf), r"'optimizer\.state\.0\.exp_avg' holds numbers that"),
        (lambda s: moments(s).update(step=torch.tensor(True)), r"optimizer\.state\.0\.step' is of type torch\.bool"),
        (lambda s: moments(s)["step"].fill_(1e9), r"optimizer\.state\.0\.step is .*, not 0 to"),
        (lambda s: moments(s).pop("exp_avg"), r"optimizer\.state\.0 holds"),
        (lambda s: s["optimizer"]["state"].update({10**6: moments(s)}), r"the optimizer has no parameter 1000000"),
        (lambda s: s["optimizer"]["param_groups"].pop(), r"the optimizer's groups have \[.*\] parameters, not \["),
        (lambda s: group(s)["params"].pop(), r"the optimizer's groups have \[.*\] parameters, not \["),
        (lambda s: s["optimizer"].pop("state"), r"cannot be read: KeyError 'state'"),
        (lambda s: s.update(optimizer=3), r"optimizer = 3"),
        (lambda s: s["generators"][0].pop("numpy"), r"cannot be read: KeyError 'numpy'"),
        (lambda s: s["generators"][0].update(torch=torch.zeros(3)), r"cannot be read: "),
        (lambda s: s["generators"][0].update(python=[3, [1] * 5, None]), r"cannot be read: "),
        (lambda s: s.update(generators=[1]), r"generators\.0 = 1"),
    ],
)
def test_a_checkpoint_that_is_not_of_this_training_is_refused_by_name(resume, change, message):
    with pytest.raises(UserError, match=message) as error:
        resume(change)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


def test_values_shared_a_billion_times_are_refused(resume):
    def change(state):
        many = ["x"]
        for _ in range(30):
            many = [many] * 10
        state["settings"]["train.lr"] = many

    with pytest.raises(UserError, match="it holds more than 100000 values"):
        resume(change)


def test_rates_are_the_settings_not_the_checkpoints(resume, make_trainer):
    trainer = resume(lambda state: group(state).update(lr=1e6, weight_decay=1e6, betas=(0.0, 0.0)))
    assert trainer.schedule.get_last_lr() == [group["lr"] for group in trainer.optimizer.param_groups]
    assert max(trainer.schedule.get_last_lr()) < 1e-3  # the last step's rate is nearly 0
    assert trainer.optimizer.param_groups[0]["betas"] == make_trainer().optimizer.param_groups[0]["betas"]


def test_a_checkpoint_that_was_sealed_is_no_longer_without_its_sums(make_trainer, tmp_path):
    make_trainer().fit()
    last = max(path for path in tmp_path.iterdir() if path.name.startswith("checkpoint_"))
    sums = (last / SUMS).read_text()
    for damaged in (None, "", sums.replace("knn.json", "knm.json"), "".join(sums.splitlines(keepends=True)[:1])):
        (last / SUMS).unlink(missing_ok=True)
        if damaged is not None:
            (last / SUMS).write_text(damaged)
        with pytest.raises(UserError, match=r"is damaged: SHA256SUMS (is missing|lacks)"):
            read_state(last)


def test_a_checkpoint_of_another_step_than_its_name_says_is_refused(make_trainer, interrupted, tmp_path):
    make_trainer().fit()
    first = min(path for path in tmp_path.iterdir() if path.name.startswith("checkpoint_"))
    first.rename(first.with_name("checkpoint_00000099"))
    with pytest.raises(UserError, match=r"checkpoint_00000099: its folder is named for another step than its own"):
        make_trainer().fit(first.with_name("checkpoint_00000099"))
