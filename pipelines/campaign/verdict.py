"""Which format, rank or depth did best in a campaign, and whether that is more than luck."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from metalora.evaluate.proportions import compare_proportions
from metalora.evaluate.significance import Estimate, Significance, compare
from metalora.report.campaign import Campaign, Point, is_accuracy, text, varied
from metalora.report.comparison import ORIGINAL

ALPHA = 0.05  # a difference counts as shown if its corrected p-value is below
MOST_VALUES = 8  # of a setting that is asked about
MOST_POINTS = 5  # compared with each other where no setting can be asked about
LARGEST = 1e100  # a loss beyond has no square


@dataclass(frozen=True)
class Question:
    """A question to a campaign: which value of a setting is best?

    Attributes:
        setting: Name of the setting, or "point": which of the first points?
        within: The format whose points are asked about; None: all formats.
        best: Value -> its first point by the campaign's metric; the values in the same order. A value is named as in
            a sentence: ``tr``, ``rank 4``, ``point 1``.
        tried: Value -> number of points with a result.
    """

    setting: str
    within: str | None
    best: Mapping[str, Point]
    tried: Mapping[str, int]


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        question: The question.
        metric: The metric that is compared: on the test split, which did not choose the points, if that is known.
        basis: The errors come from repeats, from the number of images, or are not known (none).
        images: Number of images of the metric, if that is known.
        result: The comparison. Values are negative where the smaller is better. None: no errors are known.
        gain: The comparison of the first point and the original; None if one of them is not known.
    """

    question: Question
    metric: str
    basis: Literal["repeats", "images", "none"]
    images: int | None
    result: Significance | None
    gain: Significance | None

    @property
    def leader(self) -> str | None:
        """The value that is shown to be better than every other; None if there is none."""
        if self.result is None:
            return None
        first = next(iter(self.result.scores))
        return None if self.tied(first) else first

    def tied(self, first: str) -> list[str]:
        """Return the values that are worse than a value, but not shown to be."""
        pairs = self.result.comparisons if self.result is not None else ()
        return [pair.worse for pair in pairs if pair.better == first and pair.p_holm >= ALPHA]


def answers(campaign: Campaign) -> list[Answer]:
    """Ask which format is best, then which value of each other searched setting is, within the first point's format.

    Settings with continuous values are not asked about. Where nothing can be asked, the first points are compared.
    """
    return [_answer(campaign, question) for question in _questions(campaign)]


def _questions(campaign: Campaign) -> list[Question]:
    ranked = campaign.ranked
    if len(ranked) < 2 or campaign.test_metric == campaign.metric:  # costs are counted, not estimated
        return []
    found = []
    if len(campaign.best_of_formats) > 1:
        found.append(_question("format", None, ((point.format, point) for point in ranked)))
    first = ranked[0].format
    own = [point for point in ranked if point.format == first]
    for name in varied(own) if len(own) > 1 else ():
        values = [point.settings.get(name) for point in own]
        distinct = {text(value) for value in values if value is not None}
        if name != "format" and not any(isinstance(v, float) for v in values) and 1 < len(distinct) <= MOST_VALUES:
            known = ((f"{name} {text(v)}", point) for v, point in zip(values, own, strict=True) if v is not None)
            found.append(_question(name, first, known))
    numbered = ((f"point {number}", point) for number, point in enumerate(ranked[:MOST_POINTS], 1))
    return found or [_question("point", None, numbered)]


def _question(setting: str, within: str | None, values: Iterable[tuple[str, Point]]) -> Question:
    best: dict[str, Point] = {}
    tried: dict[str, int] = {}
    for value, point in values:  # best first
        best.setdefault(value, point)
        tried[value] = tried.get(value, 0) + 1
    return Question(setting, within, best, tried)


def _answer(campaign: Campaign, question: Question) -> Answer:
    test = all(point.test is not None for point in question.best.values())
    metric = campaign.test_metric if test else campaign.metric
    images = campaign.count(metric) if is_accuracy(metric) else None
    scores = {value: _by_seed(campaign, point, test) for value, point in question.best.items()}
    seeds = sorted(set.intersection(*map(set, scores.values())))
    first = next(iter(scores))
    shared = len(seeds) > 1
    result = _compare({value: [found[seed] for seed in seeds] for value, found in scores.items()}, shared, images) or (
        _compare({value: list(found.values()) for value, found in scores.items()}, False, images)
    )
    gain = None
    if test and campaign.original is not None and result is not None:
        mine = [scores[first][seed] for seed in seeds] if result.repeats > 1 else list(scores[first].values())
        gain = _compare({first: mine, ORIGINAL: [campaign.original] * len(mine)}, result.repeats > 1, images)
    basis: Literal["repeats", "images", "none"] = "none"
    if result is not None:
        basis = "repeats" if result.repeats > 1 else "images"
    return Answer(question, metric, basis, images, result, gain)


def _by_seed(campaign: Campaign, point: Point, test: bool) -> dict[int, float]:
    """Return the finished trials' values by random seed, with the sign that makes the larger ones better."""
    sign = 1 if campaign.mode == "max" else -1
    values = {trial.random_seed: trial.test if test else trial.value for trial in point.finished}
    return {seed: sign * value for seed, value in values.items() if value is not None}


def _compare(scores: Mapping[str, Sequence[float]], repeated: bool, images: int | None) -> Significance | None:
    """Compare by repeats or, of accuracies on a known number of images, by these; None if that cannot be."""
    if any(abs(value) > LARGEST for several in scores.values() for value in several):
        return None
    if repeated:
        found = compare(scores)
        return None if _agrees(found) else found
    means = {value: sum(several) / len(several) for value, several in scores.items() if several}
    if images is None or len(means) < len(scores) or not all(0 <= mean <= 1 for mean in means.values()):
        return None
    return compare_proportions(means, images)


def _agrees(result: Significance) -> bool:
    """Tell whether repeats agree to the last image, as happens with few images: then they tell no error."""
    methods = [one for method, one in result.scores.items() if method != ORIGINAL]
    return any(one.high == one.low for one in [*methods, *(pair.difference for pair in result.comparisons)])


def margin(estimate: Estimate) -> float:
    """Return half the width of an estimate's 95 % interval."""
    return (estimate.high - estimate.low) / 2
