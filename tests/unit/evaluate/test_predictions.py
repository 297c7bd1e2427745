"""Predictions of labelled images: their file, the result of each class, confusions."""

import numpy as np
import pytest

from metalora.errors import UserError
from metalora.evaluate.predictions import (
    Predictions,
    class_results,
    confusion,
    read_predictions,
    write_predictions,
)


@pytest.fixture(scope="module")
def predictions():
    generator = np.random.default_rng(0)
    labels = generator.choice(["ant", "bee", "cat", "dog"], 300, p=[0.5, 0.3, 0.15, 0.05]).tolist()
    predicted = [
        label if generator.random() < 0.6 else str(generator.choice(["ant", "bee", "cat"])) for label in labels
    ]
    domains = generator.choice(["photo", "sketch"], 300).tolist()
    return Predictions(
        [f"{i}.png" for i in range(300)], domains, labels, predicted, generator.random(300, dtype=np.float32)
    )


def test_a_file_comes_back(predictions, tmp_path):
    write_predictions(tmp_path / "new" / "test.parquet", predictions)
    found = read_predictions(tmp_path / "new" / "test.parquet")
    assert found.ids == predictions.ids
    assert (found.domains, found.labels, found.predicted) == (
        predictions.domains, predictions.labels, predictions.predicted
    )  # fmt: skip
    assert np.array_equal(found.probability, predictions.probability)


def test_pandas_reads_the_file(predictions, tmp_path):
    import pandas as pd

    write_predictions(tmp_path / "test.parquet", predictions)
    frame = pd.read_parquet(tmp_path / "test.parquet")
    assert list(frame) == ["id", "domain", "label", "predicted", "probability"]
    assert frame["predicted"].tolist() == predictions.predicted


def test_results_of_classes_are_pandas(predictions):
    import pandas as pd

    frame = pd.DataFrame(vars(predictions))
    for one in class_results(predictions):
        mine = frame[(frame.domains == one.domain) & (frame.labels == one.label)]
        assert one.images == len(mine)
        assert one.right == (mine.labels == mine.predicted).sum()
        assert one.accuracy == pytest.approx(one.right / one.images)
        others = mine.predicted[mine.predicted != one.label].value_counts()
        assert one.times == (others.max() if len(others) else 0)
        assert not one.times or others[one.instead] == one.times
    assert len(class_results(predictions)) == len(frame.groupby(["domains", "labels"]))


def test_a_confusion_is_scikit_learns(predictions):
    from sklearn.metrics import confusion_matrix

    labels = ["ant", "bee", "cat", "dog"]
    for domain in ("photo", "sketch"):
        mine = [i for i in range(300) if predictions.domains[i] == domain]
        expected = confusion_matrix(
            [predictions.labels[i] for i in mine], [predictions.predicted[i] for i in mine], labels=labels
        )
        assert np.array_equal(confusion(predictions, domain, labels)[:, :4], expected)
        assert (confusion(predictions, domain, labels)[:, 4] == 0).all()
        few = confusion(predictions, domain, ["bee", "dog"])
        assert np.array_equal(few[:, :2], expected[[1, 3]][:, [1, 3]])
        assert np.array_equal(few[:, 2], expected[[1, 3]][:, [0, 2]].sum(1))


def test_mistakes_are_the_surest_first(predictions):
    found = predictions.wrong("photo")
    assert all(predictions.labels[i] != predictions.predicted[i] and predictions.domains[i] == "photo" for i in found)
    sure = [float(predictions.probability[i]) for i in found]
    assert sure == sorted(sure, reverse=True)
    wrong = sum(a != b for a, b in zip(predictions.labels, predictions.predicted, strict=True))
    assert len(found) + len(predictions.wrong("sketch")) == wrong


def test_another_file_is_refused(tmp_path, predictions):
    from metalora.evaluate.seeds import write_seeds

    write_seeds(tmp_path / "seeds.parquet", ["1"], ["a"], ["b"], ["test"], np.zeros((1, 2)))
    with pytest.raises(UserError, match=r"seeds.parquet.*has 0 columns 'predicted'"):
        read_predictions(tmp_path / "seeds.parquet")
