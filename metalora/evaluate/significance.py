"""Tests of which differences between methods are more than the luck of the random seeds.

Every method is trained with the same random seeds, so the scores of two methods are paired: a random seed that is good
for one tends to be good for the other, and only the differences count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from metalora.errors import UserError

Array = np.ndarray[Any, np.dtype[np.float64]]

CONFIDENCE = 0.95
SAME = 1e-12  # scores that differ by less, relative to their size, differ by rounding only


@dataclass(frozen=True)
class Estimate:
    """A mean over repeats and the ends of its 95 % Student-t interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of two methods, the one with the higher mean first.

    Attributes:
        better: Name of the first method.
        worse: Name of the second method.
        difference: Mean of better - worse, paired; its interval is not corrected for other comparisons.
        p: p-value of the two-sided paired t-test.
        p_holm: The p-value after Holm's correction for all comparisons.
    """

    better: str
    worse: str
    difference: Estimate
    p: float
    p_holm: float


@dataclass(frozen=True)
class Significance:
    """The result of `compare`.

    Attributes:
        repeats: The number of repeats n.
        scores: Method -> its mean score, best first.
        comparisons: The comparisons of every two methods, in the order of `scores`.
    """

    repeats: int
    scores: dict[str, Estimate]
    comparisons: tuple[Comparison, ...]


def compare(scores: Mapping[str, Sequence[float]]) -> Significance:
    """Compare methods by their scores, paired by repeat.

    With d the n differences of two methods: t = mean(d) / (std(d) / sqrt(n)) with n - 1 degrees of freedom (Student's
    paired t-test), and the interval is mean(d) +- t_{0.975, n-1} std(d) / sqrt(n). A method without random choices is
    given as one value n times. If all differences are equal, t is not defined; then p is 1 if they are 0, else 0.

    Args:
        scores: Method -> n scores; the i-th scores of all methods belong to the same random seed.

    Raises:
        UserError: there are fewer than 2 repeats, the methods' numbers of them differ, or some scores are not finite.
    """
    values = {method: np.asarray(given, dtype=np.float64) for method, given in scores.items()}
    _check(values)
    ranked = sorted(values, key=lambda method: -values[method].mean())
    pairs = list(combinations(ranked, 2))
    p = [_paired_p(values[better], values[worse]) for better, worse in pairs]
    return Significance(
        repeats=len(values[ranked[0]]),
        scores={method: estimate(values[method]) for method in ranked},
        comparisons=tuple(
            Comparison(better, worse, estimate(values[better] - values[worse]), raw, corrected)
            for (better, worse), raw, corrected in zip(pairs, p, holm(p), strict=True)
        ),
    )


def estimate(scores: Sequence[float] | Array) -> Estimate:
    """Return the mean of n >= 2 scores and its 95 % Student-t interval: mean +- t_{0.975, n-1} std / sqrt(n)."""
    from scipy.stats import t

    values = np.asarray(scores, dtype=np.float64)
    mean = float(values.mean())
    if np.ptp(values) <= SAME * abs(values).max():
        return Estimate(mean, mean, mean)
    margin = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Estimate(mean, mean - margin, mean + margin)


def holm(p: Sequence[float]) -> list[float]:
    """Correct m p-values so that the chance of any false discovery among them is kept.

    The k-th smallest (from 0) becomes max over j <= k of min(1, (m - j) p_(j)) (Holm 1979, Scandinavian Journal of
    Statistics 6, 65-70). This is valid however the tests depend on each other.

    Args:
        p: m p-values.

    Returns:
        The m corrected p-values, in the same order.
    """
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return [float(value) for value in corrected]


def sentence(result: Significance, alpha: float = 0.05) -> str:
    """Return a sentence on which differences are real.

    Args:
        result: The result of `compare` for accuracies in [0, 1]; the sentence gives them in percentage points.
        alpha: A difference counts as shown if its corrected p is below this.
    """
    if not result.comparisons:
        return f"Only {next(iter(result.scores))} was scored, so there is nothing to compare."
    shown = [pair for pair in result.comparisons if pair.p_holm < alpha]
    open_ones = [(pair.better, pair.worse) for pair in result.comparisons if pair.p_holm >= alpha]
    parts = [f"{pair.better} is above {pair.worse} by {_points(pair)}" for pair in shown]
    if open_ones:
        parts.append(f"no difference is shown between {_pairs(open_ones)}")
    text = "; ".join(parts)
    count = len(result.comparisons)
    test = "Paired t-test" if count == 1 else "Paired t-tests"
    correction = "" if count == 1 else f", p after Holm's correction for {count} comparisons"
    return f"{text[0].upper() if not shown else text[0]}{text[1:]}. {test} over {result.repeats} repeats{correction}."


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Name the pairs; together, if every two of their methods are one."""
    methods = list(dict.fromkeys(method for pair in pairs for method in pair))
    if len(methods) > 2 and len(pairs) == len(methods) * (len(methods) - 1) // 2:
        return f"any two of {', '.join(methods[:-1])} and {methods[-1]}"
    return ", ".join(f"{better} and {worse}" for better, worse in pairs)


def _check(values: Mapping[str, Array]) -> None:
    if not values:
        raise UserError("there are no scores to compare")
    counts = {method: len(given) for method, given in values.items()}
    listed = ", ".join(f"{method}: {count}" for method, count in counts.items())
    if len(set(counts.values())) > 1:
        raise UserError(f"scores must be paired by repeat, but the methods have different numbers of them ({listed})")
    if min(counts.values()) < 2:
        raise UserError(f"a comparison needs at least 2 repeats ({listed})")
    for method, given in values.items():
        if not np.isfinite(given).all():
            raise UserError(f"the scores of {method!r} must be finite, got {given.tolist()}")


def _paired_p(first: Array, second: Array) -> float:
    from scipy.stats import ttest_rel

    difference = first - second
    rounding = SAME * max(abs(first).max(), abs(second).max())
    if np.ptp(difference) <= rounding:
        return 1.0 if abs(difference).max() <= rounding else 0.0
    return float(ttest_rel(first, second).pvalue)


def _points(pair: Comparison) -> str:
    mean, low, high = (100 * end for end in (pair.difference.mean, pair.difference.low, pair.difference.high))
    p = "p < 0.001" if pair.p_holm < 0.001 else f"p = {pair.p_holm:.2g}"
    return f"{mean:.1f} points (95 % interval {low:.1f} to {high:.1f}, {p})"
