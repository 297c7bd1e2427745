"""Trainings that share what has been computed once end as those that compute it themselves."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from metalora.build import build_model, build_networks, build_trainer
from metalora.config import from_dict
from metalora.data import load_table
from metalora.data.images import decode
from metalora.group import Group
from metalora.train.shared import compute_shared

DEVICE = torch.device("cpu")


class Memory:
    """A reporter that remembers metrics and the last checkpoint's report."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, str], float] = {}
        self.order: list[str] = []
        self.report: dict[str, object] = {}

    def progress(self, progress) -> None:
        self.order.append(progress.phase)

    def metrics(self, step, values) -> None:
        self.values.update({(step, name): value for name, value in values.items() if "second" not in name})
        if "val/loss" in values:
            self.order.append(f"validated {step}")

    def checkpoint(self, step, write) -> None:
        self.order.append(f"checkpoint {step}")
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            if (Path(folder) / "knn.json").exists():
                self.report = json.loads((Path(folder) / "knn.json").read_text())


def train(tree, format, keep_images=None):
    config = from_dict(
        {
            "backbone": {"weights": "none"},
            "adapter": {"format": format, "rank": 2},
            "data": {"data": str(tree), "batch_size": 12},
            "train": {"epochs": 2, "lr": 0.003},
            "evaluate": {"knn": (1, 3), "evaluation_batch_size": 84},
        }
    )
    table = load_table(config.data)
    backbone, _ = build_networks(config, print)
    model = build_model(config, backbone, None, table.labels)
    reporter, shared = Memory(), None
    if keep_images is not None:
        shared = compute_shared(
            config, {"stats": model}, table, backbone.inputs, Group(DEVICE), reporter, 0, keep_images
        )
        assert (shared.images is not None) == keep_images
        arrays = [shared.original, *shared.conditions.values(), *([shared.images] if keep_images else [])]
        for array in arrays:
            assert array.dtype == (np.uint8 if array is shared.images else np.float32)
            array.flags.writeable = False  # as Ray's object store hands them out
    build_trainer(config, model, table, backbone.inputs, Group(DEVICE), reporter, 0, shared).fit()
    return reporter, shared


@pytest.mark.parametrize("format", ["tr", "lora"])
@pytest.mark.parametrize("keep_images", [True, False])
def test_shared_features_and_images_change_nothing(tree, format, keep_images):
    alone, _ = train(tree, format)
    together, shared = train(tree, format, keep_images)
    assert together.report == alone.report
    assert together.values.keys() == alone.values.keys()
    # Features of other batches differ in their last bits.
    assert list(together.values.values()) == pytest.approx(list(alone.values.values()), rel=1e-3)
    assert ("extract features" in alone.order, "extract features" in together.order) == (format == "tr", False)
    assert "test original" not in together.order
    assert set(shared.conditions) == ({"stats"} if format == "tr" else set())


def test_an_epoch_is_validated_before_its_checkpoint(tree):
    """So that what goes on from the checkpoint has missed no validation."""
    reporter, _ = train(tree, "lora")
    events = [event for event in reporter.order if event.split()[0] in ("validated", "checkpoint")]
    steps = [int(event.split()[1]) for event in events]
    assert events == [f"{kind} {step}" for step in sorted(set(steps)) for kind in ("validated", "checkpoint")]


def test_a_training_alone_decodes_every_image_once_if_all_fit(make_trainer, tmp_path, monkeypatch):
    counts = []

    def counted(data, name, max_pixels):
        counts[-1] += 1
        return decode(data, name, max_pixels)

    monkeypatch.setattr("metalora.models.inputs.decode", counted)
    results = []
    for gib in (0.0, 1e-6, 1.0):
        counts.append(0)
        folder = tmp_path / str(gib)
        folder.mkdir()
        trainer = make_trainer(folder=folder, data={"keep_images": gib})
        trainer.fit()
        report = (folder / f"checkpoint_{trainer.step:08d}" / "knn.json").read_text()
        results.append((trainer.learner.model.adapter_state(), report))
    images = len(trainer.learner.table)
    assert counts[0] == counts[1] > 5 * images
    assert counts[2] == images
    assert results[0][1] == results[2][1]
    for name, tensor in results[0][0].items():
        assert torch.equal(tensor, results[2][0][name]), name
