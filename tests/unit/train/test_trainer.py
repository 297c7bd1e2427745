"""Episodes, seeds by task, and tasks left out in turn: same again, resumed as uninterrupted, and who learns when."""

import json
from functools import partial

import pytest
import torch

from metalora.errors import UserError

EPISODE = {"name": "episodic", "classes": 3, "images": 2}
EPISODIC = {"objective": EPISODE}
IN_TURN = {"objective": {**EPISODE, "tasks": "one"}, "callbacks": ["in_turn"]}
EXAMPLE = torch.zeros(12, 3, 28, 28)
WAYS = [
    {"train": EPISODIC},
    {"train": IN_TURN, "mapping": {"seed_granularity": "task"}},
]


def _state(trainer):
    return {name: tensor.clone() for name, tensor in trainer.learner.model.adapter_state().items()}


@pytest.mark.parametrize("settings", WAYS, ids=["all", "in_turn"])
def test_resumed_is_uninterrupted_and_the_same_again(make_trainer, tmp_path, settings):
    whole = make_trainer(**settings)
    first = whole.steps_per_epoch
    whole.fit()
    expected = _state(whole)
    again = make_trainer(**settings)
    again.fit()
    resumed = make_trainer(**settings)
    resumed.fit(resume=tmp_path / f"checkpoint_{first:08d}")
    for name, tensor in expected.items():
        assert torch.equal(tensor, _state(again)[name]), name
        assert torch.equal(tensor, _state(resumed)[name]), name


def test_the_knn_loss_is_added(make_trainer):
    episodic, plain = make_trainer(train=EPISODIC), make_trainer()
    batch = next(episodic.learner.batches(0, 0))
    both = episodic.learner.losses(episodic.module, batch).losses
    alone = plain.learner.losses(plain.module, batch).losses
    assert both.shape == alone.shape == (12,)
    assert (both > alone).all()


def test_a_left_out_task_trains_the_mapping_net_alone(make_trainer):
    trainer = make_trainer(train=IN_TURN)
    trainer.learner.prepare(begins=True)
    with torch.no_grad():  # else the zero heads and factors hide who gets a gradient
        for parameter in trainer.learner.model.trainable().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    for batch in list(trainer.learner.batches(0, 0))[:2]:
        before = _state(trainer)
        trainer.train_step([batch])
        changed = {name for name, tensor in _state(trainer).items() if not torch.equal(tensor, before[name])}
        left_out = int(batch.domains[0]) == trainer.learner.tasks[0]
        assert changed
        assert all(name.startswith("mapping.") == left_out for name in changed)


@pytest.mark.parametrize("settings", [{"adapter": {"format": "lora"}}, {"data": {"holdout_domains": ("slate",)}}])
def test_leaving_tasks_out_needs_seeds_and_tasks(make_trainer, settings):
    with pytest.raises(UserError, match="in_turn needs a format with generated seeds, and two tasks or more"):
        make_trainer(train=IN_TURN, **settings)


def test_static_formats_train_on_episodes_too(make_trainer):
    trainer = make_trainer(train=EPISODIC, adapter={"format": "lora"})
    trainer.fit()
    assert "val/knn3" in trainer.reporter.heard


def test_shuffled_seeds_are_scored_beside_the_own(make_trainer, tmp_path):
    trainer = make_trainer(evaluate={"shuffled_seeds": True}, data={"holdout_domains": ("slate",)})
    trainer.fit()
    report = json.loads((tmp_path / f"checkpoint_{trainer.step:08d}" / "knn.json").read_text())
    assert report["shuffled"].keys() == report["adapted"].keys()
    assert report["shuffled"]["holdout"].keys() == {"seen", "unseen"}


def test_fused_trains_as_plain(make_trainer):
    """The order of sums differs, and Adam makes much of the signs of small gradients."""
    results = []
    plain, fused = make_trainer(), make_trainer(train={"kernel": "fused"})
    for trainer in (plain, fused):
        trainer.fit()
        folder = trainer.reporter.folder / f"checkpoint_{trainer.step:08d}"  # of the last
        results.append(json.loads((folder / "knn.json").read_text()))
    assert len(fused.learner.model.network._fused) == 1
    for name, tensor in _state(plain).items():
        assert (_state(fused)[name] - tensor).norm() <= 2e-2 * tensor.norm(), name
    assert results[0]["adapted"] == results[1]["adapted"]


def test_auto_is_fused_in_bfloat16_on_gpus_where_the_kernels_run(make_trainer, monkeypatch, caplog):
    execution = make_trainer().learner.execution
    assert not execution.fuses()
    monkeypatch.setattr(execution, "device", torch.device("cuda"))
    assert not execution.fuses()  # float32
    monkeypatch.setattr(execution, "dtype", torch.bfloat16)
    monkeypatch.setattr("metalora.train.execution.refusal", lambda device: None)
    assert execution.fuses()
    assert not caplog.records
    monkeypatch.setattr("metalora.train.execution.refusal", lambda device: "RuntimeError: no C compiler")
    assert not execution.fuses()
    assert "kernel plain, as fused ones do not run here (RuntimeError: no C compiler)" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": {"cuda_graph": True}}, r"cuda_graph needs a GPU, and this training has none \(device: cpu\)"),
        ({"train": {"kernel": "fused"}, "adapter": {"rank": 9}}, "kernel fused: this network has nothing that can be"),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_refused(make_trainer, settings, message):
    with pytest.raises(UserError, match=message):
        make_trainer(**settings)


def test_fused_kernels_that_do_not_run_are_refused(make_trainer, monkeypatch):
    monkeypatch.setattr("metalora.train.execution.refusal", lambda device: "RuntimeError: no C compiler")
    with pytest.raises(UserError, match=r"kernel fused does not run here \(RuntimeError: no C compiler\)"):
        make_trainer(train={"kernel": "fused"})


def test_a_capture_leaves_trained_norms_as_they_were_and_its_failure_is_told(make_trainer, monkeypatch):
    """What torch does to capture: it runs forward and backward some times, in earnest."""
    trainer = make_trainer(adapter={"format": "lora", "modules_to_save": ("net.stages.2.2.bn2",)})
    before, captured = _state(trainer), []

    def capture(module, samples):
        for _ in range(3):
            module(*samples)
        captured.append(_state(trainer))

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    capture_again = partial(trainer.learner.execution.capture, trainer.module, trainer.learner.model, EXAMPLE)
    capture_again()
    assert any(not torch.equal(captured[0][name], tensor) for name, tensor in before.items())
    for name, tensor in _state(trainer).items():
        assert torch.equal(tensor, before[name]), name

    def fail(module, samples):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    with pytest.raises(UserError, match=r"not permitted when stream is capturing\): train with --no-cuda-graph"):
        capture_again()


def test_how_it_is_computed_may_change_when_a_training_is_resumed(make_trainer, tmp_path):
    whole = make_trainer()
    whole.fit()
    folder = tmp_path / f"checkpoint_{whole.steps_per_epoch:08d}"
    resumed = make_trainer(data={"keep_images": 0.0}, train={"activation_checkpointing": True})
    resumed.fit(folder)
    for name, tensor in _state(whole).items():
        assert torch.allclose(_state(resumed)[name], tensor, atol=1e-5), name
    with pytest.raises(UserError, match=r"cannot be resumed, its settings changed: train\.lr was 0\.003, is 0\.1"):
        make_trainer(train={"lr": 0.1}).fit(folder)


def test_the_first_step_is_timed_and_told_how(make_trainer):
    trainer = make_trainer(train={"kernel": "fused"})
    trainer.fit()
    heard = trainer.reporter.heard
    assert 0 < heard["train/first_step_seconds"] < 60
    assert heard["train/fused_convolutions"] == len([name for name in trainer.learner.model.layers if "conv" in name])
    assert heard["train/cuda_graph"] == 0
