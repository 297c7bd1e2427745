"""k-NN against scikit-learn, planted ties, chunks, domains, errors."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from metalora.errors import UserError
from metalora.evaluate.knn import VOTES, Metric, knn_accuracy, knn_predict

K = (1, 4, 5, 10)
CLASSES = 7
TEMPERATURE = 0.07


def _data(n: int = 400, m: int = 90, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 16, generator=generator, dtype=dtype)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    truth = torch.randint(CLASSES, (m,), generator=generator)
    gallery = centres[labels] + 1.5 * torch.randn(n, 16, generator=generator, dtype=dtype)
    return gallery, labels, centres[truth] + 1.5 * torch.randn(m, 16, generator=generator, dtype=dtype)


def _softmax_of_cosine(distance: np.ndarray) -> np.ndarray:
    weight: np.ndarray = np.exp((1 - distance) / TEMPERATURE)
    return weight


def _softmax_of_squares(distance: np.ndarray) -> np.ndarray:
    square = distance**2 - (distance**2).min(axis=1, keepdims=True)
    weight: np.ndarray = np.exp(-square / 2 / TEMPERATURE)
    return weight


@pytest.mark.parametrize(
    ("metric", "theirs", "weights"),
    [("cosine", "cosine", _softmax_of_cosine), ("l2", "euclidean", _softmax_of_squares)],
)
def test_equals_scikit_learn(metric: Metric, theirs: str, weights: Any) -> None:
    gallery, labels, queries = _data()
    ours = knn_predict(gallery, labels, queries, k=K, classes=CLASSES, metric=metric, temperature=TEMPERATURE)
    for k in K:
        for vote in VOTES:
            weighting = weights if vote == "weighted" else vote
            judge = KNeighborsClassifier(k, weights=weighting, metric=theirs, algorithm="brute")
            expected = judge.fit(gallery.numpy(), labels.numpy()).predict(queries.numpy())
            assert ours[vote, k].tolist() == expected.tolist(), (vote, k)
    assert len({tuple(answer.tolist()) for answer in ours.values()}) > 3  # the cases do differ


def test_weighted_vote_is_the_softmax_written_out() -> None:
    gallery, labels, queries = _data()
    unit, queries_unit = (torch.nn.functional.normalize(x, dim=1) for x in (gallery, queries))
    similarity, index = (queries_unit @ unit.T).topk(10, dim=1)
    share = torch.softmax(similarity / 0.5, dim=1)
    votes = torch.einsum("mk,mkc->mc", share, torch.nn.functional.one_hot(labels[index], CLASSES).double())
    ours = knn_predict(gallery, labels, queries, k=[10], classes=CLASSES, temperature=0.5)
    assert torch.equal(ours["weighted", 10], votes.argmax(dim=1))


@pytest.mark.parametrize("chunk", [1, 3, 64, 4096])
def test_equal_distances_go_to_the_lower_index(chunk: int) -> None:
    # Fifty points in four places; the neighbours are the first of the nearest place, by index.
    place = torch.tensor([3.0, 1.0, 2.0, 1.0, 4.0]).repeat(10)
    labels = torch.arange(50)
    for k in (1, 5, 19, 22, 50):
        order = sorted(range(50), key=lambda i: (place[i].item(), i))[:k]
        found = knn_predict(
            place[:, None].double(),
            labels,
            torch.zeros(2, 1).double(),
            k=[k],
            classes=50,
            metric="l2",
            temperature=1e9,
            chunk=chunk,
        )
        # All labels differ: every neighbour has one vote, and the smallest label of them wins.
        assert found["uniform", k].tolist() == [min(order)] * 2
    one = knn_predict(
        torch.ones(50, 3), labels.flip(0), torch.ones(1, 3), k=[1, 2], classes=50, metric="l2", chunk=chunk
    )
    assert (one["uniform", 1].item(), one["uniform", 2].item()) == (49, 48)


def test_a_tied_vote_goes_to_the_smallest_class() -> None:
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    found = knn_predict(gallery, torch.tensor([2, 1, 1, 2]), gallery[:1], k=[2, 3, 4], classes=3)
    assert [found["uniform", k].item() for k in (2, 3, 4)] == [1, 1, 1]
    assert found["weighted", 2].item() == 2  # the nearer one


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_chunks_change_nothing(metric: Metric) -> None:
    gallery, labels, queries = _data()
    whole = knn_predict(gallery, labels, queries, k=K, classes=CLASSES, metric=metric)
    for chunk in (7, 128):
        parts = knn_predict(gallery, labels, queries, k=K, classes=CLASSES, metric=metric, chunk=chunk)
        assert all(torch.equal(parts[key], whole[key]) for key in whole)


def test_half_precision_and_autocast_do_not_blur_the_search() -> None:
    gallery, labels, queries = _data(dtype=torch.float32)
    plain = knn_predict(gallery, labels, queries, k=K, classes=CLASSES)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            blurred = knn_predict(gallery, labels, queries, k=K, classes=CLASSES)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(plain[key], blurred[key]) for key in plain)

    half = gallery.bfloat16()
    exact = knn_predict(half.double(), labels, queries.bfloat16().double(), k=K, classes=CLASSES)
    low = knn_predict(half, labels, queries.bfloat16(), k=K, classes=CLASSES)
    assert all(torch.equal(exact[key], low[key]) for key in exact)


def test_far_features_and_zero_vectors_have_votes_too() -> None:
    gallery, labels, queries = _data()
    far = knn_predict(1e3 * gallery, labels, 1e3 * queries, k=[5], classes=CLASSES, metric="l2")
    nearest = knn_predict(gallery, labels, queries, k=[1], classes=CLASSES, metric="l2")
    assert torch.equal(far["weighted", 5], nearest["uniform", 1])
    zero = knn_predict(gallery, labels, torch.zeros(1, 16).double(), k=[1], classes=CLASSES)
    assert zero["uniform", 1].item() == labels[0]


def test_accuracy_by_domain_sums_to_the_overall() -> None:
    gallery, labels, queries = _data()
    truth = torch.arange(90) % CLASSES
    domain = torch.tensor([0, 0, 2]).repeat(30)
    result = knn_accuracy(gallery, labels, queries, truth, domain, domains=["a", "empty", "c"], k=K, classes=CLASSES)
    predicted = knn_predict(gallery, labels, queries, k=K, classes=CLASSES)

    assert result.queries == {"a": 60, "c": 30}
    assert list(result.by_domain) == ["a", "c"]
    for vote in VOTES:
        for k in K:
            assert result.overall[vote][k] == pytest.approx((predicted[vote, k] == truth).double().mean().item())
            total = sum(result.by_domain[name][vote][k] * count for name, count in result.queries.items())
            assert total == pytest.approx(90 * result.overall[vote][k])
    plain = json.loads(json.dumps(result.as_dict()))
    assert plain == result.as_dict()
    assert plain["by_domain"]["c"]["weighted"]["10"] == result.by_domain["c"]["weighted"][10]


@pytest.mark.parametrize(
    ("k", "metric", "message"),
    [
        ((5, 401), "cosine", "K = 401 needs as many gallery images, and there are 400"),
        ((0,), "cosine", "K must be at least 1"),
        ((5,), "euclid", "unknown k-NN metric 'euclid'"),
    ],
)
def test_wrong_settings_are_refused(k: Sequence[int], metric: Any, message: str) -> None:
    gallery, labels, queries = _data()
    with pytest.raises(UserError, match=message):
        knn_predict(gallery, labels, queries, k=k, classes=CLASSES, metric=metric)


def test_wrong_features_are_refused() -> None:
    gallery, labels, queries = _data()
    with pytest.raises(UserError, match="at least one query"):
        knn_predict(gallery, labels, queries[:0], k=K, classes=CLASSES)
    queries[3, 2] = float("nan")
    with pytest.raises(UserError, match="1 of 90 query features hold NaN"):
        knn_predict(gallery, labels, queries, k=K, classes=CLASSES)
    with pytest.raises(UserError, match="1 of 90 gallery features"):
        knn_predict(queries, labels[:90], gallery, k=K, classes=CLASSES)
