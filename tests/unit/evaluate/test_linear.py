"""The linear classifier against scikit-learn's."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from metalora.errors import UserError
from metalora.evaluate.linear import linear_hits, linear_predict


def _data(n: int = 300, m: int = 400) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 20, generator=generator)
    labels = torch.randint(6, (n + m,), generator=generator)
    labels[labels == 2] = 3  # a class that nobody has
    features = 3 + torch.arange(1.0, 21) * (centres[labels] + 1.5 * torch.randn(n + m, 20, generator=generator))
    features[:, 7] = 5.0
    return features[:n], labels[:n], features[n:], labels[n:]


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_equals_scikit_learn(c: float) -> None:
    gallery, labels, queries, truth = _data()
    scaler = StandardScaler().fit(gallery.double().numpy())
    judge = LogisticRegression(C=c, tol=1e-8, max_iter=5000)
    judge.fit(scaler.transform(gallery.double().numpy()), labels.numpy())
    expected = torch.from_numpy(judge.predict(scaler.transform(queries.double().numpy())))
    ours = linear_predict(gallery, labels, queries, c=c)
    assert (ours == expected).double().mean() >= 0.99
    assert (expected != truth).any()  # no case where everything is right


def test_accuracy_is_the_share_of_right_predictions() -> None:
    gallery, labels, queries, truth = _data()
    right = linear_predict(gallery, labels, queries) == truth
    assert linear_hits(gallery, labels, queries, truth).double().mean() == pytest.approx(float(right.double().mean()))


def test_a_gallery_of_one_class_predicts_it() -> None:
    gallery, _, queries, _ = _data()
    assert set(linear_predict(gallery, torch.full((len(gallery),), 4), queries).tolist()) == {4}


def test_features_that_are_not_finite_are_an_error() -> None:
    gallery, labels, queries, _ = _data()
    gallery[3, 3] = float("nan")
    with pytest.raises(UserError, match="linear classifier: features hold NaN or infinity"):
        linear_predict(gallery, labels, queries)
