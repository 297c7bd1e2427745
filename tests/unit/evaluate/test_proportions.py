"""Intervals and tests of accuracies measured once, against scipy and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from metalora.errors import UserError
from metalora.evaluate.proportions import compare_proportions, estimate_proportion


@pytest.mark.parametrize(("hits", "images"), [(0, 81), (40, 81), (80, 81), (81, 81), (1, 1), (4711, 5000)])
def test_the_interval_is_scipys(hits: int, images: int) -> None:
    found = estimate_proportion(hits / images, images)
    wanted = stats.binomtest(hits, images).proportion_ci(0.95, method="wilson")
    assert found.mean == hits / images
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_for_many_images_it_is_the_binomial_standard_error() -> None:
    found = estimate_proportion(0.8, 100_000)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * math.sqrt(0.8 * 0.2 / 100_000), rel=1e-3)


def test_the_test_is_scipys_chi_squared() -> None:
    hits = {"lora": 60, "tr": 75, "cp": 70}
    result = compare_proportions({name: count / 81 for name, count in hits.items()}, 81)
    assert list(result.scores) == ["tr", "cp", "lora"]
    assert len(result.comparisons) == 3
    for pair in result.comparisons:
        table = [[hits[name], 81 - hits[name]] for name in (pair.better, pair.worse)]
        assert pair.p == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue)
        assert pair.p_holm >= pair.p
        assert pair.difference.mean == pytest.approx((hits[pair.better] - hits[pair.worse]) / 81)


def test_the_interval_of_a_difference_is_newcombes() -> None:
    (pair,) = compare_proportions({"a": 9 / 10, "b": 3 / 10}, 10).comparisons  # table II, method 10
    assert (pair.difference.low, pair.difference.high) == pytest.approx((0.1705, 0.8090), abs=1e-4)


def test_one_image_of_81_tells_nothing_apart() -> None:
    (pair,) = compare_proportions({"tr": 76 / 81, "lora": 75 / 81}, 81).comparisons
    assert pair.p > 0.7
    assert pair.difference.low < 0 < pair.difference.high


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_all_right_and_all_wrong_are_no_difference(p: float) -> None:
    (pair,) = compare_proportions({"a": p, "b": p}, 10).comparisons
    assert (pair.p, pair.difference.mean) == (1, 0)
    assert pair.difference.low < 0 < pair.difference.high


def test_on_the_same_images_false_discoveries_are_rarer_than_five_percent() -> None:
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        hard = generator.uniform(size=(1, 200))  # how hard each image is, for all methods alike
        hits = generator.uniform(size=(3, 200)) * 0.5 + hard * 0.5 < 0.6
        accuracies = dict(zip("abc", hits.mean(axis=1).tolist(), strict=True))
        wrong += any(pair.p_holm < 0.05 for pair in compare_proportions(accuracies, 200).comparisons)
    assert wrong / 1000 < 0.05


@pytest.mark.parametrize(
    ("accuracies", "images", "message"),
    [
        ({}, 5, "no accuracies"),
        ({"a": 0.5}, 0, "at least 1 image, got 0"),
        ({"a": 1.5}, 5, r"'a' must be in \[0, 1\], got 1.5"),
        ({"a": float("nan")}, 5, "got nan"),
    ],
)
def test_what_cannot_be_compared_is_refused(accuracies: dict[str, float], images: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare_proportions(accuracies, images)
