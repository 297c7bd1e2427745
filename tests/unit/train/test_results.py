"""The results of a training: errors of gains, predictions beside seeds, and what is drawn of them."""

import json

import numpy as np
import pytest
import torch

from metalora.evaluate.accuracy import Accuracy
from metalora.evaluate.knn import KnnResult
from metalora.evaluate.predictions import read_predictions
from metalora.evaluate.sample_files import read_samples
from metalora.evaluate.seeds import read_seeds
from metalora.report.measures import measures
from metalora.train.results import gain_errors
from pipelines.run.results import copy_results


def _accuracy(knn, linear):
    return Accuracy(KnnResult({}, {}, {}, torch.tensor(knn)), float(np.mean(linear)), torch.tensor(linear))


def test_the_error_of_a_gain_is_that_of_the_same_images():
    """On bootstrap samples of the images, the gain varies by as much."""
    generator = np.random.default_rng(0)
    before = generator.random(400) < 0.6
    after = np.where(generator.random(400) < 0.9, before, ~before)
    error = gain_errors(_accuracy(before, before), _accuracy(after, after))
    drawn = generator.integers(0, 400, (4000, 400))
    spread = (after[drawn].mean(1) - before[drawn].mean(1)).std()
    assert error["knn"] == error["linear"] == pytest.approx(spread, rel=0.05)
    apart = np.sqrt(before.mean() * (1 - before.mean()) / 400 + after.mean() * (1 - after.mean()) / 400)
    assert error["knn"] < 0.7 * apart


@pytest.mark.parametrize("format", ["tr", "lora"])
def test_predictions_stand_in_the_results(make_trainer, tmp_path, format):
    trainer = make_trainer(
        tmp_path / "run", adapter={"format": format, "rank": 2}, data={"holdout_domains": ("slate",)}
    )
    trainer.fit()
    last = tmp_path / "run" / f"checkpoint_{trainer.step:08d}"
    learner, report = trainer.learner, json.loads((last / "knn.json").read_text())
    table = learner.table
    found = read_predictions(last / "predictions" / "test.parquet")
    rows = np.concatenate([table.rows("test"), table.holdout_rows("test")])
    assert list(found.ids) == [str(name) for name in table.id[rows]]
    images = [table.read(int(row)) for row in rows]
    learner.model.inputs = learner.feed.inputs
    expected = learner.model.predict(images)
    assert list(found.predicted) == [one.label for one in expected]
    assert found.probability.tolist() == pytest.approx([one.probability for one in expected], abs=1e-4)
    test = len(table.rows("test"))
    right = np.array(found.labels[:test]) == np.array(found.predicted[:test])
    assert right.mean() == pytest.approx(report["test_accuracy"])
    assert [m.paired for m in measures(report)][:2] == list(report["gain_error"].values())
    if format == "tr":
        beside = read_samples(last / "seeds" / "seeds.parquet", {"predicted": "text", "probability": "number"}, "seeds")
        assert beside["predicted"] == list(found.predicted[:test])
        assert read_seeds(last / "seeds" / "seeds.parquet").ids == list(found.ids[:test])
    folder, said = tmp_path / "copied", []
    folder.mkdir()
    copy_results(last, folder, said.append, table)
    made = {path.name for path in (folder / "predictions").iterdir()}
    assert {"test.parquet", "classes.csv", "confusion.png"} <= made
    assert ("mistakes.png" in made) == (list(found.labels) != list(found.predicted))
    assert said == []
