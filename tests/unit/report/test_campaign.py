"""Points, ranks, fronts, importance and tables of made-up trials."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metalora.report.campaign import LEAST_POINTS, Campaign, Trial, describe, metric_label, varied
from metalora.report.campaign_plots import plot_cost, plot_importances, plot_ranks
from metalora.report.campaign_tables import leaderboard, leaderboard_section, markdown, standing, task_section
from metalora.report.importance import MIN_POINTS, importances
from metalora.report.parallel_plot import plot_parallel


def trial(point: dict[str, Any], value: float | None, status: str = "finished", **given: Any) -> Trial:
    facts: dict[str, Any] = {
        "random_seed": 0,
        "error": None,
        "test": None,
        "tasks": {},
        "parameters": None,
        "step_ms": None,
    }
    return Trial("t", status, format=point.get("format", "tr"), point=point, value=value, **{**facts, **given})


def campaign(*trials: Trial, **given: Any) -> Campaign:
    facts: dict[str, Any] = {"search": {}, "metric": "val/knn10", "mode": "max", "objectives": ("val/knn10",)}
    return Campaign("c", task_metric="val/knn10", trials=trials, **{**facts, **given})


def sized(format: str, value: float, parameters: int) -> Trial:
    return trial({"format": format, "rank": parameters}, value, parameters=parameters)


def test_repeats_of_a_point_are_gathered_and_points_ranked() -> None:
    found = campaign(
        trial({"rank": 2}, 0.7),
        trial({"rank": 4}, 0.8, random_seed=0, step_ms=10.0),
        trial({"rank": 4}, 0.9, random_seed=1, step_ms=20.0),
        trial({"rank": 4}, 0.1, "stopped", random_seed=2, step_ms=90.0),
        trial({"rank": 8}, 0.99, "stopped"),
        trial({"rank": 16}, None, "failed"),
    )
    assert [point.settings["rank"] for point in found.points] == [4, 2, 8, 16]
    assert [point.settings["rank"] for point in found.ranked] == [4, 2]
    best = found.points[0]
    assert best.score == pytest.approx(0.85)
    assert best.spread == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert best.step_ms == 20
    assert found.points[2].reached == 0.99
    assert standing(found) == "6 trials: 3 finished, 2 stopped early, 1 failed."


def test_the_error_of_a_point_is_that_of_its_repeats_or_of_its_images() -> None:
    one, two = trial({"rank": 1}, 0.8), [trial({"rank": 2}, value, random_seed=s) for s, value in enumerate((0.5, 0.6))]
    found = campaign(one, *two, images={"val": {"a": 81}})
    assert found.error(found.points[0]) == pytest.approx(np.sqrt(0.8 * 0.2 / 81))
    assert found.error(found.points[1]) == pytest.approx(np.std([0.5, 0.6], ddof=1))
    assert campaign(one).error(campaign(one).points[0]) is None
    loss = campaign(one, metric="val/loss", images={"val": {"a": 81}})
    assert loss.error(loss.points[0]) is None


def test_a_smaller_value_is_better_if_the_campaign_says_so() -> None:
    trials = [trial({"rank": rank}, value) for rank, value in ((1, 0.5), (2, 0.3), (3, 0.4))]
    assert [point.settings["rank"] for point in campaign(*trials, mode="min").points] == [2, 3, 1]


def test_the_front_by_hand() -> None:
    found = campaign(
        sized("lora", 0.70, 10), sized("cp", 0.80, 20), sized("tr", 0.75, 20), sized("a", 0.80, 30),
        sized("b", 0.85, 40), sized("c", 0.60, 50), trial({"format": "unknown cost"}, 0.9),
    )  # fmt: skip
    assert [point.format for point in found.front("parameters")] == ["lora", "cp", "b"]
    assert found.front("step_ms") == []


def test_points_are_told_apart_in_few_words() -> None:
    trials = [
        trial({"format": "tr", "rank": 4, "lr": 0.0061234, "mapping_depth": 2, "alpha": 1}, 0.9),
        trial({"format": "lora", "rank": 8, "lr": 0.001, "alpha": 1}, 0.8),
    ]
    points = campaign(*trials).points
    names = varied(points)
    assert names == ["format", "rank", "lr", "mapping_depth"]
    assert [describe(point, names) for point in points] == ["tr, rank 4, lr 0.00612, mapping_depth 2",
                                                            "lora, rank 8, lr 0.001"]  # fmt: skip
    assert varied(points[:1]) == ["format", "rank", "alpha", "lr", "mapping_depth"]


def forest(count: int) -> Campaign:
    """A campaign in which the format decides, the depth (of tr only) and the learning rate do little."""
    generator = np.random.default_rng(0)
    trials = []
    for number in range(count):
        point: dict[str, Any] = {"format": "lora", "lr": float(10 ** generator.uniform(-3, -1))}
        if number % 2:
            point |= {"format": "tr", "mapping_depth": int(generator.integers(1, 4))}
        trials.append(trial(point, 0.8 + 0.1 * (number % 2) + float(generator.normal(0, 0.005))))
    return campaign(*trials)


def test_a_conditional_setting_does_not_take_the_share_of_its_condition() -> None:
    shares = importances(forest(40).ranked)
    assert next(iter(shares)) == "format"
    assert shares["format"] > 0.8
    assert set(shares) == {"format", "lr", "mapping_depth"}
    assert sum(shares.values()) == pytest.approx(1)


def test_a_setting_that_never_changes_where_it_applies_has_no_share() -> None:
    found = forest(40)
    trials = [replace(one, point={**one.point, "branches": 4}) if "mapping_depth" in one.point else one
              for one in found.trials]  # fmt: skip
    assert importances(campaign(*trials).ranked).get("branches", 0) == 0


def test_importance_takes_enough_points_that_differ() -> None:
    assert importances(forest(MIN_POINTS - 1).ranked) == {}
    assert importances(campaign(*[trial({"rank": rank}, 0.5) for rank in range(20)]).ranked) == {}


def test_the_leaderboard_leaves_out_what_is_not_known() -> None:
    head, body = leaderboard(
        campaign(sized("tr", 0.912, 12345), sized("lora", 0.9, 100), sized("cp", 0.5, 200)), rows=2
    )
    assert head == ["#", "point", "val/knn10 %", "parameters", "trials"]
    assert body == [("1*", "tr, rank 12345", "91.2", "12,345", "1 finished"),
                    ("2*", "lora, rank 100", "90.0", "100", "1 finished")]  # fmt: skip
    two = campaign(*[trial({"rank": 4}, value, random_seed=seed) for seed, value in enumerate((0.8, 0.9))])
    assert leaderboard(two)[0] == ["#", "point", "val/knn10 %", "std", "trials"]
    assert "std their standard deviation" in leaderboard_section(two)
    assert leaderboard(campaign(trial({}, 0.25), metric="val/loss", mode="min"))[1][0][2] == "0.25"


def test_the_original_is_the_last_row() -> None:
    found = campaign(*(trial({"rank": rank}, 0.9, test=0.8) for rank in range(40)), original=0.364)
    head, body = leaderboard(found, rows=2)
    assert head == ["#", "point", "val/knn10 %", "test", "parameters", "trials"]
    assert body[1:] == [("2", "tr, rank 1", "90.0", "80.0", "-", "1 finished"), ("", "original", "-", "36.4", "0", "")]
    text = leaderboard_section(found)
    assert "10 more points are not listed" in text
    assert "no finished trial" not in text


def test_tasks_of_the_first_point_of_each_format() -> None:
    found = campaign(
        trial({"format": "tr", "rank": 2}, 0.9, tasks={"a": 0.95, "b": 0.85}),
        trial({"format": "tr", "rank": 4}, 0.8, tasks={"a": 1.0, "b": 1.0}),
        trial({"format": "lora", "rank": 2}, 0.7, tasks={"a": 0.5, "b": 0.9}),
        images={"val": {"a": 1234}},
    )
    text = task_section(found)
    assert "| task | images | tr | lora |" in text
    assert "| a | 1,234 | 95.0 | 50.0 |" in text
    assert "| b | - | 85.0 | 90.0 |" in text
    assert "- tr, rank 2\n- lora, rank 2" in text


def test_words() -> None:
    assert metric_label("val/knn10") == "validation k-NN accuracy, K = 10 (%)"
    assert metric_label("test/knn5_weighted/sketch") == "test k-NN accuracy, K = 5, weighted vote, sketch (%)"
    assert metric_label("val/loss") == "val/loss"
    assert markdown(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_pictures_are_drawn_where_there_is_something_to_draw(tmp_path: Path) -> None:
    had_pyplot = "matplotlib.pyplot" in sys.modules
    path = tmp_path / "picture.png"
    four = campaign(*(sized("tr", 0.9, rank) for rank in range(1, LEAST_POINTS)))
    for draw in (plot_cost, plot_parallel):
        assert not draw(four, path)
    assert not plot_importances({}, path)
    ranks = [trial({"rank": rank}, 0.5) for rank in range(LEAST_POINTS)]
    assert not plot_cost(campaign(*ranks), path)  # of unknown cost
    assert not plot_cost(campaign(*(replace(one, parameters=7) for one in ranks)), path)  # all of one cost
    one_rank_a_format = [trial({"format": f"own {i}", "rank": i, "lr": lr}, 0.5) for i in range(4) for lr in (0.1, 0.2)]
    assert not plot_ranks(campaign(*one_rank_a_format), path)
    assert not path.exists()

    odd = campaign(
        *(trial({"format": f"own {i // 2}", "rank": i, "target_modules": [str(i)]}, 0.5, parameters=i // 8)
          for i in range(1, 9))
    )  # fmt: skip
    for draw in (plot_cost, plot_ranks, plot_parallel):
        assert draw(odd, path)
        assert path.stat().st_size > 1000
        path.unlink()
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot
