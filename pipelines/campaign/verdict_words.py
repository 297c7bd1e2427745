"""The verdict on a campaign in words and tables, for its report and the terminal."""

from collections.abc import Callable, Sequence

from metalora.data.names import printable
from metalora.evaluate.significance import Estimate, Significance
from metalora.report.campaign import Campaign, describe, is_accuracy, metric_label, varied
from metalora.report.campaign_tables import markdown, number
from metalora.report.comparison import ORIGINAL
from metalora.report.drawing import verbatim
from pipelines.campaign.verdict import ALPHA, Answer, margin

FEW_REPEATS = 5
SIZES = 1.1  # numbers of parameters that differ by more are not the same size
TIED = "these cannot be told apart"
Show = Callable[[str], str]


def images_line(campaign: Campaign) -> str:
    """Return a sentence on the number of images and on what one of them is worth; empty if no number is known."""
    metrics = {"validation": campaign.metric, "test": campaign.test_metric}
    known = {split: campaign.count(metric) for split, metric in metrics.items() if is_accuracy(metric)}
    parts = [f"{n:,} {split} images: one image is {_worth(n)} points" for split, n in known.items() if n]
    return f"{'; '.join(parts)}." if parts else ""


def absent_line(campaign: Campaign, show: Show) -> str:
    """Return a sentence on the formats that have no finished trial to compare; empty if there are none."""
    absent = sorted({point.format for point in campaign.points} - campaign.best_of_formats.keys())
    return f"Without a finished trial, so not compared: {', '.join(map(show, absent))}." if absent else ""


def verdict_lines(campaign: Campaign, found: Sequence[Answer]) -> list[str]:
    """Return the verdict for the terminal: images, a line on each answer, what it rests on, and what to do next."""
    if not found:
        return []
    width = max(len(answer.question.setting) for answer in found)
    lines = [f"{printable(answer.question.setting):<{width}}  {told(answer)}" for answer in found]
    how = {(answer.metric, answer.basis): _basis(answer) for answer in reversed(found)}.values()
    gain, absent = _gain(found[0], printable), absent_line(campaign, printable)
    steps = [step for answer in found if (step := _next_step(campaign, answer, printable))]
    return [line.replace("`", "") for line in (images_line(campaign), *lines, gain, absent, *how, *steps[:1]) if line]


def verdict_section(campaign: Campaign, found: Sequence[Answer]) -> str:
    """Return the report's section that answers each question with a table, a sentence and what to do next."""
    if not found:
        return ""
    lead = (images_line(campaign), _selection(found[0]), absent_line(campaign, verbatim))
    parts = ["## Which to take?", " ".join(filter(None, lead))]
    for answer in found:
        within = answer.question.within
        setting = verbatim(answer.question.setting)
        parts.append(f"### {setting}{'' if within is None else f', with {verbatim(within)}'}")
        parts.append(_table(campaign, answer, whole=answer is found[0]))
        said = told(answer, verbatim)
        parts.append(f"**{said[0].upper() + said[1:] if said.startswith(TIED) else said}.** {_basis(answer)}")
        gain = _gain(answer, verbatim) if answer is found[0] else ""
        parts.append(" ".join(filter(None, (gain, _next_step(campaign, answer, verbatim)))))
    return "\n\n".join(part for part in parts if part)


def told(answer: Answer, show: Show = printable) -> str:
    """Return which values can be told apart, without a full stop: ``these cannot be told apart: tr, cp``."""
    result = answer.result
    if result is None:
        return f"{TIED}: {', '.join(map(show, answer.question.best))}"
    first, *others = result.scores
    tied = answer.tied(first)
    shown = [pair for pair in result.comparisons if pair.better == first and pair.worse not in tied]
    better = ", than ".join(f"{show(pair.worse)} by {_amount(answer.metric, pair.difference)}" for pair in shown)
    if not tied:
        return f"{show(first)} is better than {better}"
    if len(tied) == len(others) and all(pair.p_holm >= ALPHA for pair in result.comparisons):
        return f"{TIED}: {', '.join(map(show, result.scores))}"
    also = f", but is better than {better}" if better else ""
    return f"{show(first)} cannot be told apart from {', '.join(map(show, tied))}{also}"


def _basis(answer: Answer) -> str:
    """Return a sentence on what the comparison rests on."""
    if answer.result is None:
        why = "the number of images is not known" if is_accuracy(answer.metric) else "that takes repeats"
        return f"The error of {answer.metric} is not known: {why}."
    several = len(answer.result.comparisons) > 1
    tests, holm = ("tests", " with Holm's correction") if several else ("test", "")
    if answer.basis == "repeats":
        return (
            f"Paired t-{tests} of {answer.metric} over {answer.result.repeats} repeats{holm}, on the same images; "
            "± is half of the 95 % interval."
        )
    split = "test" if answer.metric.startswith("test/") else "validation"
    return (
        f"z-{tests} over {answer.images:,} {split} images{holm}; ± is half of the 95 % interval, an upper bound "
        "since all saw the same images."
    )


def _gain(answer: Answer, show: Show) -> str:
    """Return what the first point has gained over the original."""
    if answer.gain is None or not answer.gain.comparisons:
        return ""
    (pair,) = answer.gain.comparisons
    way = "above" if pair.worse == ORIGINAL else "below"
    unsure = ", a difference that is not shown" if pair.p >= ALPHA else ""
    first = show(next(iter(answer.question.best)))
    return f"{first} is {_amount(answer.metric, pair.difference)} {way} the original backbone{unsure}."


def _selection(answer: Answer) -> str:
    if answer.metric.startswith("test/"):
        return (
            "The validation figures chose the points, so the highest of them are optimistic. The test figures chose "
            "nothing."
        )
    return "The same validation images chose these points, so the first figure and the comparison are optimistic."


def _sizes(answer: Answer, show: Show) -> str:
    """Return a warning if the formats' best points differ in size."""
    sizes = {f: p.parameters for f, p in answer.question.best.items() if p.parameters is not None}
    if not sizes:
        return ""
    low, high = min(sizes, key=lambda f: sizes[f] or 0), max(sizes, key=lambda f: sizes[f] or 0)
    if (sizes[high] or 0) <= SIZES * (sizes[low] or 0):
        return ""
    return (
        f"The formats differ in size, from {sizes[low]:,} trained parameters ({show(low)}) to {sizes[high]:,} "
        f"({show(high)}): this compares sizes as well as formats. `--parameter-budget N` gives all the same size."
    )


def _next_step(campaign: Campaign, answer: Answer, show: Show) -> str:
    """Return what would tell the values apart, or compare the formats fairly."""
    formats = answer.question.setting == "format"
    sizes = _sizes(answer, show) if formats else ""
    parts = [sizes] if sizes else []
    if answer.leader is None:
        now = max(len(point.trials) for point in campaign.points)
        more = FEW_REPEATS if now < FEW_REPEATS else 2 * now
        parts.append(f"To tell them apart, take a new campaign with `--repeats {more}` (now {now}), or more images.")
        known = {value: p.parameters for value, p in answer.question.best.items() if p.parameters is not None}
        if formats and len(set(known.values())) > 1:
            parts.append(
                f"Until then nothing speaks against the smallest, {show(min(known, key=lambda v: known[v] or 0))}."
            )
    if formats and parts:
        parts.append(
            "`metalora reproduce table1` makes the fair comparison: one size, each format tuned alike, fresh repeats."
        )
    return " ".join(parts)


def _table(campaign: Campaign, answer: Answer, whole: bool) -> str:
    """Return a row for each value and, for the whole table, one for the original."""
    metric, on_test = campaign.metric, answer.metric != campaign.metric
    names = varied(campaign.points)
    head = [answer.question.setting, "its first point", "points tried", _head(metric)]
    head += [_head(answer.metric)] if on_test else []
    head += ["±", "parameters"]
    body = []
    for value, point in answer.question.best.items():
        score = point.test if on_test else None
        row = [verbatim(value), verbatim(describe(point, names)), str(answer.question.tried[value])]
        row += [number(point.score, metric), *([number(score, answer.metric)] if on_test else [])]
        row += [_margin(answer, answer.result, value)]
        body.append([*row, "-" if point.parameters is None else f"{point.parameters:,}"])
    if whole and on_test and campaign.original is not None:
        error = _margin(answer, answer.gain, ORIGINAL) if answer.basis == "images" else "-"
        body.append([ORIGINAL, "no adapter", "-", "-", number(campaign.original, answer.metric), error, "0"])
    return markdown([verbatim(head[0]), *head[1:]], body, left=2)


def _head(metric: str) -> str:
    return metric_label(metric).replace("validation k-NN accuracy", "validation").replace("test k-NN accuracy", "test")


def _margin(answer: Answer, result: Significance | None, value: str) -> str:
    estimate = None if result is None else result.scores.get(value)
    return "-" if estimate is None else number(margin(estimate), answer.metric)


def _worth(images: int) -> str:
    """Return what one image is worth in percentage points."""
    points = 100 / images
    return f"{points:.1f}" if points >= 1 else f"{points:.2g}"


def _amount(metric: str, difference: Estimate) -> str:
    if is_accuracy(metric):
        return f"{100 * difference.mean:.1f} ± {100 * margin(difference):.1f} points"
    return f"{difference.mean:.3g} ± {margin(difference):.2g}"
