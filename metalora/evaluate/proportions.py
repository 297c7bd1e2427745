"""Uncertainty of accuracies that were measured once, on a number of images.

The formulas take every image as one draw. Two methods are compared as if each had seen images of its own. If both saw
the same images, their errors partly cancel, so that the standard error used here is an upper bound; a paired test would
need to know which images each of them got right.
"""

import math
from collections.abc import Mapping
from itertools import combinations

from metalora.errors import UserError
from metalora.evaluate.significance import Comparison, Estimate, Significance, holm

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


def estimate_proportion(p: float, images: int) -> Estimate:
    """Return an accuracy and its 95 % Wilson interval: all q with abs(p - q) <= z sqrt(q (1 - q) / n).

    The binomial standard error sqrt(p (1 - p) / n) is 0 where every image was right; this interval is not empty there
    (Wilson 1927, Journal of the American Statistical Association 22, 209-212).

    Args:
        p: The accuracy in [0, 1].
        images: The number n of images.

    Raises:
        UserError: the accuracy is outside [0, 1], or there are no images.
    """
    _check({"accuracy": p}, images)
    share = Z * Z / images
    centre = (p + share / 2) / (1 + share)
    half = math.sqrt(p * (1 - p) * share + share * share / 4) / (1 + share)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def compare_proportions(accuracies: Mapping[str, float], images: int) -> Significance:
    """Compare methods by one accuracy each, as if each was measured on n images of its own.

    The test of two methods is the two-proportion z-test: z = (p - q) / sqrt(2 m (1 - m) / n), m = (p + q) / 2. The
    interval of the difference joins the two Wilson intervals (Newcombe 1998, Statistics in Medicine 17, 873-890).

    Args:
        accuracies: Method -> accuracy in [0, 1].
        images: The number n of images of each method.

    Returns:
        The comparisons of every two methods; `Significance.repeats` is 1.

    Raises:
        UserError: there are no methods, an accuracy is outside [0, 1], or there are no images.
    """
    _check(accuracies, images)
    ranked = sorted(accuracies, key=lambda method: -accuracies[method])
    scores = {method: estimate_proportion(accuracies[method], images) for method in ranked}
    pairs = list(combinations(ranked, 2))
    p = [_p(accuracies[better], accuracies[worse], images) for better, worse in pairs]
    return Significance(
        repeats=1,
        scores=scores,
        comparisons=tuple(
            Comparison(better, worse, _difference(scores[better], scores[worse]), raw, corrected)
            for (better, worse), raw, corrected in zip(pairs, p, holm(p), strict=True)
        ),
    )


def _check(accuracies: Mapping[str, float], images: int) -> None:
    if not accuracies:
        raise UserError("there are no accuracies to compare")
    if images < 1:
        raise UserError(f"an accuracy needs at least 1 image, got {images}")
    for method, p in accuracies.items():
        if not 0 <= p <= 1:
            raise UserError(f"the accuracy of {method!r} must be in [0, 1], got {p}")


def _p(p: float, q: float, images: int) -> float:
    mean = (p + q) / 2
    error = math.sqrt(2 * mean * (1 - mean) / images)
    return math.erfc(abs(p - q) / error / math.sqrt(2)) if error else 1.0


def _difference(better: Estimate, worse: Estimate) -> Estimate:
    difference = better.mean - worse.mean
    low = math.hypot(better.mean - better.low, worse.high - worse.mean)
    high = math.hypot(better.high - better.mean, worse.mean - worse.low)
    return Estimate(difference, difference - low, difference + high)
