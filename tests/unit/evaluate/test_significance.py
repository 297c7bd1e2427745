"""Intervals and p-values against scipy, Holm's correction by hand, and simulations whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from metalora.errors import UserError
from metalora.evaluate.significance import compare, estimate, holm, sentence

SCORES = {
    "lora": [0.901, 0.913, 0.897, 0.905, 0.909],
    "tr": [0.921, 0.930, 0.917, 0.922, 0.931],
    "cp": [0.914, 0.932, 0.921, 0.916, 0.935],
    "original": [0.37] * 5,
}


def test_scores_and_pairs_are_scipys() -> None:
    result = compare(SCORES)

    assert result.repeats == 5
    assert list(result.scores) == ["tr", "cp", "lora", "original"]
    for method, found in result.scores.items():
        if method != "original":
            wanted = stats.ttest_1samp(SCORES[method], 0).confidence_interval(0.95)
            assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert len(result.comparisons) == 6
    for pair in result.comparisons:
        wanted = stats.ttest_rel(SCORES[pair.better], SCORES[pair.worse])
        interval = wanted.confidence_interval(0.95)
        assert pair.p == pytest.approx(wanted.pvalue)
        assert (pair.difference.low, pair.difference.high) == pytest.approx((interval.low, interval.high))
        assert pair.difference.mean == pytest.approx(np.mean(SCORES[pair.better]) - np.mean(SCORES[pair.worse]))
    assert [pair.p_holm for pair in result.comparisons] == holm([pair.p for pair in result.comparisons])


def test_a_constant_method_has_a_point_for_an_interval() -> None:
    original = compare(SCORES).scores["original"]
    assert (original.low, original.mean, original.high) == pytest.approx((0.37, 0.37, 0.37))


def test_holm_by_hand() -> None:
    # sorted: 0.01 * 4 = 0.04; 0.02 * 3 = 0.06; 0.03 * 2 = 0.06; 0.04 * 1 = 0.04, raised to 0.06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.1, 0.0)])
def test_equal_differences(shift: float, p: float) -> None:
    first = np.array([0.3, 0.4, 0.7, 0.11])
    result = compare({"a": first, "b": first + shift})
    assert [pair.p for pair in result.comparisons] == [p]
    (pair,) = result.comparisons
    assert (pair.difference.low, pair.difference.high) == pytest.approx((shift, shift))


def test_the_estimate_is_scipys_interval() -> None:
    scores = SCORES["cp"]
    result = estimate(scores)
    sem = stats.sem(scores)
    assert (result.low, result.high) == pytest.approx(stats.t.interval(0.95, 4, np.mean(scores), sem))
    always = estimate([0.1 + 0.2] * 5)
    assert always.low == always.mean == always.high == pytest.approx(0.3)


def test_the_sentence() -> None:
    assert sentence(compare({name: SCORES[name] for name in ("lora", "tr", "cp")})) == (
        "tr is above lora by 1.9 points (95 % interval 1.7 to 2.2, p < 0.001); "
        "cp is above lora by 1.9 points (95 % interval 1.0 to 2.7, p = 0.0064); "
        "no difference is shown between tr and cp. "
        "Paired t-tests over 5 repeats, p after Holm's correction for 3 comparisons."
    )


def test_sentences_of_little() -> None:
    assert sentence(compare({"a": [0.1, 0.2], "b": [0.2, 0.1]})) == (
        "No difference is shown between a and b. Paired t-test over 2 repeats."
    )
    tied = {"a": [0.1, 0.3], "b": [0.3, 0.1], "c": [0.1, 0.2]}
    assert sentence(compare(tied)).startswith("No difference is shown between any two of a, b and c. ")
    assert sentence(compare({"a": [0.1, 0.2]})) == "Only a was scored, so there is nothing to compare."


def test_false_discoveries_are_rare_where_nothing_differs() -> None:
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        luck = generator.normal(0, 0.02, 5)  # of the random seeds, shared by the methods
        scores = {name: 0.9 + luck + generator.normal(0, 0.01, 5) for name in ("a", "b", "c")}
        wrong += any(pair.p_holm < 0.05 for pair in compare(scores).comparisons)
    assert 0.02 < wrong / 1000 < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


def test_a_large_difference_is_found_in_spite_of_unlucky_seeds() -> None:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        luck = generator.normal(0, 0.1, 5)
        scores = {name: 0.5 + gain + luck + generator.normal(0, 0.01, 5) for name, gain in (("a", 0.0), ("b", 0.05))}
        (pair,) = compare(scores).comparisons
        found += pair.better == "b" and pair.p_holm < 0.05
    assert found > 95


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": [0.5], "b": [0.6]}, r"at least 2 repeats \(a: 1, b: 1\)"),
        ({"a": [0.5, 0.6], "b": [0.6]}, r"different numbers of them \(a: 2, b: 1\)"),
        ({"a": [0.5, float("nan")]}, "'a' must be finite"),
        ({}, "no scores"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores: dict[str, list[float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare(scores)
