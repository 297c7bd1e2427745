"""Which format is best: what the report may say, from made-up trials whose answer is known."""

import re
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from metalora.report.campaign import Campaign, Trial
from pipelines.campaign.verdict import Answer, answers
from pipelines.campaign.verdict_words import images_line, told, verdict_lines, verdict_section

IMAGES = {"val": {"photo": 40, "sketch": 41}, "test": {"photo": 50, "sketch": 50}}


def trial(format: str, value: float, test: float | None, seed: int = 0, **given: Any) -> Trial:
    point = {"format": format, **given.pop("point", {})}
    facts: dict[str, Any] = {"error": None, "tasks": {}, "parameters": 1000, "step_ms": None, **given}
    return Trial("t", "finished", format=format, point=point, random_seed=seed, value=value, test=test, **facts)


def campaign(*trials: Trial, **given: Any) -> Campaign:
    facts: dict[str, Any] = {"search": {}, "metric": "val/knn10", "mode": "max", "objectives": (), "images": IMAGES}
    return Campaign("c", trials=trials, task_metric="val/knn10", **{**facts, **given})


def answer(*trials: Trial, **given: Any) -> Answer:
    return answers(campaign(*trials, **given))[0]


def test_one_image_of_81_names_no_winner() -> None:
    found = campaign(trial("tr", 76 / 81, 0.93), trial("lora", 75 / 81, 0.92))
    (only,) = answers(found)
    assert only.leader is None
    lines = verdict_lines(found, [only])
    assert lines[0] == "81 validation images: one image is 1.2 points; 100 test images: one image is 1.0 points."
    assert lines[1] == "format  these cannot be told apart: tr, lora"
    assert lines[2].startswith("z-test over 100 test images; ± is half of the 95 % interval, an upper bound")
    assert "--repeats 5 (now 1)" in lines[3]
    assert "metalora reproduce table1" in lines[3]


def test_without_repeats_a_large_difference_is_told_over_the_images() -> None:
    only = answer(trial("tr", 0.9, 0.95), trial("lora", 0.9, 0.60))
    assert (only.basis, only.images, only.leader) == ("images", 100, "tr")
    assert only.result is not None
    (pair,) = only.result.comparisons
    assert pair.p == pytest.approx(stats.chi2_contingency([[95, 5], [60, 40]], correction=False).pvalue)
    half = 50 * (pair.difference.high - pair.difference.low)
    assert told(only) == f"tr is better than lora by 35.0 ± {half:.1f} points"


def repeats(format: str, *tests: float, **given: Any) -> list[Trial]:
    return [trial(format, test + 0.01, test, seed, **given) for seed, test in enumerate(tests)]


def test_with_repeats_the_error_is_that_of_the_repeats() -> None:
    tr, lora = (0.70, 0.73, 0.71), (0.66, 0.68, 0.67)
    only = answer(*repeats("tr", *tr), *repeats("lora", *lora))
    assert (only.basis, only.leader) == ("repeats", "tr")
    wanted = stats.ttest_rel(tr, lora).confidence_interval(0.95)
    assert told(only) == f"tr is better than lora by 4.3 ± {50 * (wanted.high - wanted.low):.1f} points"


def test_the_second_may_be_tied_and_the_third_not() -> None:
    only = answer(*repeats("tr", 0.90, 0.91, 0.93, 0.92), *repeats("cp", 0.91, 0.90, 0.92, 0.925),
                  *repeats("lora", 0.60, 0.62, 0.63, 0.61))  # fmt: skip
    assert told(only).startswith("tr cannot be told apart from cp, but is better than lora by 30.0 ± ")
    assert only.leader is None


def test_repeats_that_agree_to_the_last_image_prove_nothing() -> None:
    only = answer(*repeats("tr", 0.75, 0.75), *repeats("lora", 0.74, 0.74))
    assert (only.basis, only.leader) == ("images", None)
    same_step = answer(*repeats("tr", 0.75, 0.76), *repeats("lora", 0.74, 0.75))
    assert (same_step.basis, same_step.leader) == ("images", None)


def test_holm_counts_all_comparisons() -> None:
    trials = [trial(format, 0.9, test) for format, test in (("tr", 0.80), ("cp", 0.67), ("lora", 0.67), ("x", 0.67))]
    two = answer(*trials[:2])
    assert two.leader == "tr", "alone, it is told"
    four = answer(*trials)
    assert four.leader is None
    assert "Holm's correction" in verdict_lines(campaign(*trials), [four])[2]


def test_the_test_split_decides_and_validation_is_called_optimistic() -> None:
    found = campaign(trial("tr", 0.99, 0.60), trial("lora", 0.98, 0.95))
    (only,) = answers(found)
    assert only.leader == "lora"
    assert "The test figures chose nothing" in verdict_section(found, [only])
    without = campaign(trial("tr", 0.99, None), trial("lora", 0.60, None))
    (only,) = answers(without)
    assert (only.metric, only.images) == ("val/knn10", 81)
    assert "the first figure and the comparison are optimistic" in verdict_section(without, [only])


def test_ranks_and_depths_are_asked_about_within_the_first_format() -> None:
    points = [({"rank": 4, "mapping_depth": 1, "lr": 0.1}, 0.9), ({"rank": 2, "mapping_depth": 1, "lr": 0.2}, 0.5),
              ({"rank": 4, "mapping_depth": 2, "lr": 0.3}, 0.8)]  # fmt: skip
    found = answers(campaign(*(trial("tr", value, value, point=point) for point, value in points),
                             trial("lora", 0.7, 0.7, point={"rank": 16})))  # fmt: skip
    assert [(one.question.setting, one.question.within) for one in found] == [
        ("format", None), ("rank", "tr"), ("mapping_depth", "tr"),
    ]  # fmt: skip
    assert dict(found[1].question.tried) == {"rank 4": 2, "rank 2": 1}
    assert found[0].question.best["tr"].settings["lr"] == 0.1
    assert told(found[1]).startswith("rank 4 is better than rank 2 by 40.0 ± ")


def test_where_only_a_rate_is_searched_the_first_points_are_compared() -> None:
    only = answer(*(trial("tr", 0.8 + rate, 0.8 + rate, point={"lr": rate}) for rate in (0.01, 0.02, 0.03)))
    assert told(only) == "these cannot be told apart: point 1, point 2, point 3"


def test_a_loss_needs_repeats_and_its_smaller_value_is_better() -> None:
    settings: dict[str, Any] = {"metric": "val/loss", "mode": "min"}
    one = campaign(trial("tr", 0.2, None), trial("lora", 0.9, None), **settings)
    assert verdict_lines(one, answers(one))[:2] == [
        "format  these cannot be told apart: tr, lora", "The error of val/loss is not known: that takes repeats.",
    ]  # fmt: skip
    losses = {"tr": (0.2, 0.21, 0.19), "lora": (0.9, 0.93, 0.9)}
    several = [trial(f, value, None, seed) for f, values in losses.items() for seed, value in enumerate(values)]
    assert told(answer(*several, **settings)).startswith("tr is better than lora by 0.71 ± 0.0")


def test_a_format_that_was_stopped_is_named_as_not_compared() -> None:
    stopped = replace(trial("multi_lora", 0.99, None), status="stopped")
    found = campaign(trial("tr", 0.9, 0.95), trial("lora", 0.9, 0.60), stopped)
    assert "Without a finished trial, so not compared: multi_lora." in verdict_lines(found, answers(found))
    assert "so not compared: multi\\_lora." in verdict_section(found, answers(found))
    assert "not compared" not in verdict_section(campaign(*found.trials[:2]), answers(campaign(*found.trials[:2])))


def test_costs_are_no_question() -> None:
    assert answers(campaign(trial("tr", 10, None), trial("lora", 9, None), metric="parameters", mode="min")) == []
    assert answers(campaign(trial("tr", 0.9, 0.9))) == []
    assert verdict_section(campaign(), []) == ""


@pytest.mark.parametrize(("sizes", "warned"), [((1000, 1099), False), ((1000, 1101), True), ((0, 5), True)])
def test_formats_of_different_size_are_no_comparison_of_formats(sizes: tuple[int, int], warned: bool) -> None:
    found = campaign(*(trial(format, 0.9, test, parameters=size)
                       for format, test, size in zip(("lora", "tr"), (0.5, 0.95), sizes, strict=True)))  # fmt: skip
    text = verdict_section(found, answers(found))
    assert ("`--parameter-budget N`" in text) == warned
    assert ("`metalora reproduce table1`" in text) == warned
    assert "--repeats" not in text, "they are told apart"


def test_the_original_has_a_row_and_the_gain_a_test() -> None:
    found = campaign(trial("tr", 0.9, 0.9), trial("lora", 0.9, 0.89), original=0.364)
    text = verdict_section(found, answers(found))
    assert "| original | no adapter | - | - | 36.4 | " in text
    assert "tr is 53.6 ± " in text
    assert "above the original backbone" in text
    none = campaign(trial("tr", 0.9, 0.40), trial("lora", 0.9, 0.89), original=0.38)
    lines = verdict_lines(none, answers(none))
    assert any(re.fullmatch(r"tr is 2\.0 ± .* points above the original .*, a difference that is not shown\.", line)
               for line in lines)  # fmt: skip
    worse = campaign(trial("tr", 0.9, 0.10), trial("lora", 0.9, 0.89), original=0.38)
    assert "points below the original backbone." in verdict_section(worse, answers(worse))


def test_what_is_not_known_is_not_made_up() -> None:
    found = campaign(trial("tr", 0.9, 0.9), trial("lora", 0.5, 0.5), images={})
    assert images_line(found) == ""
    assert verdict_lines(found, answers(found))[:2] == [
        "format  these cannot be told apart: tr, lora",
        "The error of test/knn10 is not known: the number of images is not known.",
    ]
    assert found.count("val/knn10/photo") is None


def test_a_metric_of_one_domain_counts_its_images() -> None:
    assert campaign().count("val/knn10/photo") == 40
    assert campaign().count("test/knn10_weighted") == 100
    assert campaign().count("val/knn10/none") is None


@pytest.mark.parametrize("value", [-3.0, 7.0, 1e300])
def test_values_of_strangers_give_no_error(value: float) -> None:
    for repeat in (1, 2):
        trials = [trial(format, value, value * factor, seed) for format, factor in (("tr\n|x*", 1.0), ("original", 0.9))
                  for seed in range(repeat)]  # fmt: skip
        found = campaign(*trials, original=0.4)
        assert "these cannot be told apart" in verdict_lines(found, answers(found))[1]
        assert "\n|x*" not in verdict_section(found, answers(found))
