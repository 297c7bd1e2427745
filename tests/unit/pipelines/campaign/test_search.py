"""The searcher: repeats, budgets, what is learned, and what is recalled."""

import pytest
from ray.tune.search import Searcher

from pipelines.campaign.search import CampaignSearch, ListSource, OptunaSource
from pipelines.campaign.spaces import load_space
from pipelines.campaign.trials import TrialSpec

POINTS = [{"format": "lora", "lr": 0.01}, {"format": "tr", "rank": 2, "lr": 0.02}, {"format": "cp", "lr": 0.03}]


def drain(search):
    """Return all suggestions."""
    found = []
    while (suggestion := search.suggest(str(len(found)))) != Searcher.FINISHED:
        found.append(suggestion["trial"])
    return found


def test_every_point_is_run_with_every_seed():
    trials = drain(CampaignSearch(ListSource(iter(POINTS), None), range(5, 7), ["val/knn10"]))
    assert [(t.number, t.point, t.random_seed) for t in trials] == [
        (2 * i + j, point, 5 + j) for i, point in enumerate(POINTS) for j in range(2)
    ]
    assert trials[2].name == "002-tr-r2-lr0.02-s5"


def test_the_number_of_points_is_limited():
    assert len(drain(CampaignSearch(ListSource(iter(POINTS), 2), [0], ["val/knn10"]))) == 2


def test_no_trial_starts_beyond_the_epochs():
    search = CampaignSearch(ListSource(iter(POINTS), None), [0], ["val/knn10"], total_epochs=10)
    search.suggest("a")
    search.on_trial_result("a", {"epoch": 6})
    search.suggest("b")
    search.on_trial_result("b", {"epoch": 3})
    search.on_trial_complete("b", {"epoch": 4, "val/knn10": 0.5})
    search.on_trial_result("a", {"epoch": 7})
    assert search.suggest("c") == Searcher.FINISHED


class Memory(ListSource):
    """A source that remembers what it was told."""

    def __init__(self):
        super().__init__(iter(POINTS), None)
        self.told = []

    def tell(self, point, values):
        self.told.append((point["format"], values))


def test_a_point_counts_by_the_mean_of_its_seeds():
    source = Memory()
    search = CampaignSearch(source, range(3), ["val/knn10", "parameters"])
    for name in "abcdef":
        search.suggest(name)
    for name, value in zip("ab", (0.2, 0.6), strict=True):
        search.on_trial_complete(name, {"val/knn10": value, "parameters": 10})
    assert source.told == []
    search.on_trial_complete("c", error=True)
    assert source.told == [("lora", [pytest.approx(0.4), 10])]
    for name in "def":
        search.on_trial_complete(name, {"parameters": 10})  # failed before it was validated
    assert source.told[1] == ("tr", None)


def trial(number, repeats=2):
    return TrialSpec.of(number, POINTS[number // repeats], number % repeats)


def test_an_earlier_part_is_recalled():
    """Ended trials are learned from, the open one goes on, its point's other repeat follows, then new points."""
    source = Memory()
    search = CampaignSearch(source, range(2), ["val/knn10"])
    search.recall([(trial(0), {"val/knn10": 0.5, "epoch": 8}), (trial(1), {"val/knn10": 0.7}), (trial(2), None)])
    assert source.told == [("lora", [0.6])]
    assert [t.number for t in drain(search)] == [2, 3, 4, 5]
    assert [t.point["format"] for t in drain(CampaignSearch(Memory(), range(2), ["x"]))][4:] == ["cp", "cp"]


def test_optuna_learns_on_a_conditional_space():
    """On an objective that TPE can learn, late suggestions beat early ones; no setting leaks."""
    space = load_space("paper")
    search = CampaignSearch(OptunaSource(space, ["max"], 60, random_seed=0), [0], ["val/knn10"])
    values = []
    for i in range(60):
        point = search.suggest(str(i))["trial"].point
        assert ("mapping_depth" in point) == (point["format"] in ("cp", "tr"))
        values.append((point["format"] == "tr") - abs(point["lr"] - 0.01) * 20)
        search.on_trial_complete(str(i), {"val/knn10": values[-1]})
    assert search.suggest("last") == Searcher.FINISHED
    assert sum(values[-20:]) / 20 > sum(values[:20]) / 20 + 0.2


def test_optuna_recalls_points_of_an_earlier_part():
    space = load_space("paper")
    first = CampaignSearch(OptunaSource(space, ["max", "min"], 10, random_seed=0), [0], ["val/knn10", "parameters"])
    past = []
    for i in range(6):
        past.append((first.suggest(str(i))["trial"], {"val/knn10": i / 10, "parameters": 100.0 - i}))
    source = OptunaSource(space, ["max", "min"], 10, random_seed=6)  # as a resumed campaign does: its number of trials
    again = CampaignSearch(source, [0], ["val/knn10", "parameters"])
    again.recall([*past[:5], (past[5][0], None)])
    known = [trial.values for trial in source.study.trials if trial.state.is_finished()]
    assert known == [[i / 10, 100.0 - i] for i in range(5)]
    rest = drain(again)
    assert rest[0] == past[5][0]
    assert [t.number for t in rest] == [5, 6, 7, 8, 9]
    assert not [t for t in rest[1:] if t.point in [trial.point for trial, _ in past]]
