"""The searcher: repeats, budgets, what is learned, and what is recalled."""

import pytest
from ray import tune
from ray.tune.search import Searcher

from pipelines.campaign.search import CampaignSearch, ListSource, OptunaSource
from pipelines.campaign.spaces import Space, grid, load_space, number_of_points, sample
from pipelines.campaign.trials import TrialSpec

POINTS = [{"format": "lora", "lr": 0.01}, {"format": "tr", "rank": 2, "lr": 0.02}, {"format": "cp", "lr": 0.03}]


def drain(search):
    """Return all suggestions."""
    found = []
    while (suggestion := search.suggest(str(len(found)))) != Searcher.FINISHED:
        found.append(suggestion["trial"])
    return found


def test_every_point_is_run_with_every_seed():
    trials = drain(CampaignSearch(ListSource(iter(POINTS)), range(5, 7), ["val/knn10"]))
    assert [(t.number, t.point, t.random_seed) for t in trials] == [
        (2 * i + j, point, 5 + j) for i, point in enumerate(POINTS) for j in range(2)
    ]
    assert trials[2].name == "002-tr-r2-lr0.02-s5"


def test_the_number_of_points_is_limited():
    assert len(drain(CampaignSearch(ListSource(iter(POINTS)), [0], ["val/knn10"], points=2))) == 2


def test_no_trial_starts_beyond_the_epochs():
    search = CampaignSearch(ListSource(iter(POINTS)), [0], ["val/knn10"], total_epochs=10)
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
        super().__init__(iter(POINTS))
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
    search = CampaignSearch(OptunaSource(space, ["max"], random_seed=0), [0], ["val/knn10"], points=60)
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
    first = CampaignSearch(OptunaSource(space, ["max", "min"], random_seed=0), [0], ["val/knn10", "parameters"], 10)
    past = []
    for i in range(6):
        past.append((first.suggest(str(i))["trial"], {"val/knn10": i / 10, "parameters": 100.0 - i}))
    source = OptunaSource(space, ["max", "min"], random_seed=6)  # as a resumed campaign does: its number of trials
    again = CampaignSearch(source, [0], ["val/knn10", "parameters"], 10)
    again.recall([*past[:5], (past[5][0], None)])
    known = [trial.values for trial in source.study.trials if trial.state.is_finished()]
    assert known == [[i / 10, 100.0 - i] for i in range(5)]
    rest = drain(again)
    assert rest[0] == past[5][0]
    assert [t.number for t in rest] == [5, 6, 7, 8, 9]
    assert not [t for t in rest[1:] if t.point in [trial.point for trial, _ in past]]


SMALL = Space("small", ({"format": "lora"}, {"format": "cp", "rank": tune.choice([1, 2]), "epochs": 3}), {}, {})


@pytest.mark.parametrize("source", [lambda: ListSource(sample(SMALL, 0)), lambda: OptunaSource(SMALL, ["max"], 0)])
@pytest.mark.parametrize("ends", [True, False], ids=["one by one", "all at once"])
def test_a_point_is_tried_once_and_a_small_space_has_an_end(source, ends):
    """The same settings and random seed give the same result: another trial would be no repeat."""
    search = CampaignSearch(source(), [0], ["val/knn10"], points=16)
    found = []
    while (suggestion := search.suggest(str(len(found)))) != Searcher.FINISHED:
        if ends:
            search.on_trial_complete(str(len(found)), {"val/knn10": len(found)})
        found.append(str(suggestion["trial"].point))
    assert sorted(found) == sorted(str(point) for point in grid(SMALL, 2))
    assert number_of_points(SMALL) == len(found) == 3


def test_points_that_older_code_ran_twice_are_recalled():
    search = CampaignSearch(OptunaSource(SMALL, ["max"], 0), [0], ["val/knn10"], points=4)
    point = {"format": "cp", "rank": 2, "epochs": 3}
    search.recall([(TrialSpec.of(number, point, 0), {"val/knn10": 0.5}) for number in range(2)])
    assert sorted(str(one.point.get("rank")) for one in drain(search)) == ["1", "None"]


def test_alternatives_that_overlap_are_one_point_and_ranges_have_no_number():
    ranks = ({"rank": tune.choice([1, 2])}, {"rank": tune.randint(2, 4)})
    assert [point["rank"] for point in grid(Space("", ranks, {}, {}), 2)] == [1, 2, 3]
    assert number_of_points(Space("", ranks, {}, {})) == 4
    assert number_of_points(Space("", ({"lr": tune.uniform(0, 1)},), {}, {})) is None


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ({}, "003-s1"),
        ({"format": "tr", "rank": 4, "mapping_depth": 2, "lr": 0.006}, "003-tr-r4-d2-lr0.006-s1"),
        ({"format": "multi_lora", "format.branches": 2, "rank": 4}, "003-multi_lora-branches2-r4-s1"),
        ({"format": {"name": "multi_lora", "branches": 2}}, "003-multi_lora-branches2-s1"),
        ({"callbacks": ["in_turn"], "objective": "cp", "objective.tasks": "a/b"}, "003-in_turn-cp-tasksa_b-s1"),
    ],
)  # fmt: skip
def test_a_trial_is_named_after_its_point(point, name):
    assert TrialSpec.of(3, point, 1).name == name
