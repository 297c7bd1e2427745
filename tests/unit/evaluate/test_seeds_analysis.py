"""What the seeds are said to know, where the answer is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import silhouette_score

from metalora.errors import UserError
from metalora.evaluate import seeds as module
from metalora.evaluate.seeds import Seeds, analyse, read_seeds, seed_sentence, write_seeds

COUNT = 240


def make(gap: float, size: int = 6) -> Seeds:
    """Seeds whose task moves the mean by ``gap`` standard deviations, and whose class moves nothing."""
    generator = np.random.default_rng(0)
    task, label = np.arange(COUNT) % 3, generator.integers(0, 4, COUNT)
    vectors = generator.normal(size=(COUNT, size)) + gap * np.eye(3, size)[task]
    names = [str(number) for number in range(COUNT)]
    return Seeds(names, [f"task {t}" for t in task], [f"class {y}" for y in label], ["test"] * COUNT, vectors)


def test_seeds_come_back(tmp_path: Path) -> None:
    seeds = make(1)
    path = tmp_path / "seeds.parquet"
    write_seeds(path, seeds.ids, seeds.domains, seeds.labels, seeds.splits, seeds.vectors)
    found = read_seeds(path)
    assert replace(found, vectors=None) == replace(seeds, vectors=None)
    assert np.array_equal(found.vectors, seeds.vectors.astype(np.float32))


def test_tasks_far_apart() -> None:
    seeds = make(8)
    found = analyse(seeds)

    assert (found.samples, found.size, found.task.groups, found.label.groups) == (COUNT, 6, 3, 4)
    assert found.task.probe == 1.0
    assert found.task.chance == pytest.approx(1 / 3)
    assert found.task.eta_squared > 0.8
    standard = (seeds.vectors - seeds.vectors.mean(0)) / seeds.vectors.std(0)
    assert found.task.silhouette == pytest.approx(silhouette_score(standard, seeds.domains))
    assert found.label.probe is not None
    assert found.label.probe < found.label.chance + 0.1
    assert found.label.eta_squared < 0.05
    assert seed_sentence(found).startswith(
        "The mapping net tells the tasks apart: from the seed alone, a linear probe names the task of 100.0% of the "
        "images (always naming the largest: 33.3%), and the class of "
    )


def test_tasks_that_the_seeds_ignore_or_half_know() -> None:
    assert seed_sentence(analyse(make(0))).startswith("The mapping net does not tell the tasks apart:")
    assert seed_sentence(analyse(make(1))).startswith("The mapping net tells the tasks apart in part:")


@pytest.mark.parametrize("gap", [0, 2])
def test_variance_between_and_within_make_the_total(gap: float) -> None:
    seeds = make(gap)
    total = seeds.vectors.var(axis=0).sum()
    found = analyse(seeds)
    for separation in (found.task, found.label):
        assert separation.between + separation.within == pytest.approx(total)
        assert separation.eta_squared == pytest.approx(separation.between / total)


def test_principal_components_are_uncorrelated_and_explain_their_share() -> None:
    seeds = make(4)
    found = analyse(seeds)
    covariance = np.cov(found.components.T, ddof=0)
    assert covariance[0, 1] == pytest.approx(0, abs=1e-9)
    assert np.diag(covariance) / 6 == pytest.approx(found.explained)  # 6 standardised numbers: a variance of 6
    assert found.explained[0] > found.explained[1] > 0


def test_equal_seeds_know_nothing() -> None:
    found = analyse(replace(make(0), vectors=np.ones((COUNT, 6), dtype=np.float32)))
    assert found.explained == (0, 0)
    assert not found.components.any()
    assert (found.task.eta_squared, found.task.silhouette) == (0, 0)
    assert found.task.probe == pytest.approx(1 / 3)
    assert seed_sentence(found).startswith("The mapping net does not tell the tasks apart:")


def test_odd_groups() -> None:
    seeds = make(1, size=1)
    one = analyse(replace(seeds, domains=["a"] * COUNT))
    assert (one.task.groups, one.task.probe, one.task.silhouette, one.task.chance) == (1, None, None, 1)
    assert "one task only" in seed_sentence(one)
    assert one.explained == (1, 0)
    single = analyse(replace(seeds, domains=["a"] * (COUNT - 1) + ["b"]))
    assert single.task.probe is None
    assert "single image" in seed_sentence(single)
    assert "class" not in seed_sentence(analyse(replace(seeds, labels=seeds.ids)))


def test_many_seeds_are_sampled_for_the_silhouette(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = analyse(make(8)).task.silhouette
    monkeypatch.setattr(module, "SILHOUETTE_SAMPLE", 90)
    sampled = analyse(make(8)).task.silhouette
    assert sampled != whole
    assert sampled == pytest.approx(whole, abs=0.05)


def test_what_cannot_be_analysed_is_refused(tmp_path: Path) -> None:
    seeds = make(0)
    with pytest.raises(UserError, match="at least 2 seeds, got 1"):
        analyse(replace(seeds, vectors=seeds.vectors[:1]))
    with pytest.raises(UserError, match="finite"):
        analyse(replace(seeds, vectors=np.full((COUNT, 2), np.nan)))
    with pytest.raises(UserError, match=r"'.*none.parquet' cannot be read"):
        read_seeds(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(UserError, match=r"text.parquet' cannot be read"):
        read_seeds(tmp_path / "text.parquet")
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other.parquet' cannot be read"):
        read_seeds(tmp_path / "other.parquet")
