"""The importance of settings for a campaign's score."""

from collections.abc import Sequence
from statistics import median_low, mode
from typing import Any

from metalora.report.campaign import Point, varied

MIN_POINTS = 10  # a forest grown on fewer tells its own noise


def importances(points: Sequence[Point]) -> dict[str, float]:
    """Return the share of the score's variance that each setting explains by itself, the largest first.

    This is Optuna's fANOVA (Hutter, Hoos, Leyton-Brown 2014, ICML): a random forest is fitted to the scores, and the
    variance of its marginals over each setting is computed; the shares are normalised to 1. A conditional setting that
    does not apply gets its middle or most frequent value: an extra value would stand for the format, and take the
    format's share.

    Args:
        points: Points with a score.

    Returns:
        The shares; empty with fewer than `MIN_POINTS` points, or if the settings or the scores are all the same.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    names = varied(points)
    scores = [point.score for point in points if point.score is not None]
    if len(scores) < MIN_POINTS or not names or max(scores) == min(scores):
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    columns = {name: _column([point.settings.get(name) for point in points]) for name in names}
    study = optuna.create_study()
    for row, score in enumerate(scores):
        params = {name: values[row] for name, (values, _) in columns.items()}
        distributions = {name: distribution for name, (_, distribution) in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _column(values: Sequence[Any]) -> tuple[list[Any], Any]:
    """Return a setting's values as Optuna takes them, and the distribution they are said to come from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    present = [value for value in values if value is not None]
    if all(isinstance(value, float) for value in present):
        usual = median_low(present)
        filled = [usual if value is None else value for value in values]
        return filled, FloatDistribution(min(filled), max(filled), log=min(filled) > 0)
    common = mode(str(value) for value in present)
    texts = [common if value is None else str(value) for value in values]
    return texts, CategoricalDistribution(sorted(set(texts)))
