"""Generated seeds: their file, with one row per sample, and how well they tell tasks and classes apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metalora.errors import UserError
from metalora.evaluate.sample_files import Form, read_samples, write_samples

Array = np.ndarray[Any, np.dtype[Any]]

FOLDS = 5
SILHOUETTE_SAMPLE = 5000  # the silhouette takes all pairwise distances
COLUMNS = ("id", "domain", "label", "split")


@dataclass(frozen=True)
class Seeds:
    """The content of a seeds file: N ids, domains, labels and splits, and the seeds (N, S)."""

    ids: list[str]
    domains: list[str]
    labels: list[str]
    splits: list[str]
    vectors: Array


@dataclass(frozen=True)
class Separation:
    """Measures of how well seeds tell G groups (the tasks, or the classes) apart.

    Attributes:
        groups: G, the number of groups.
        silhouette: Mean silhouette of the standardised seeds, in [-1, 1]; 0 if groups overlap.
        probe: Cross-validated accuracy of a logistic regression from the standardised seed to its group.
        chance: Accuracy of always naming the largest group.
        between: Variance of the groups' means, weighted by size and summed over the S numbers of a seed.
        within: Mean variance within a group, computed likewise; between + within = the seeds' variance.

    Silhouette and probe are None if there is only one group, or if a group has fewer than 2 seeds.
    """

    groups: int
    silhouette: float | None
    probe: float | None
    chance: float
    between: float
    within: float

    @property
    def eta_squared(self) -> float:
        """Return the share of the variance that the groups explain, between / (between + within); 0 for equal seeds."""
        total = self.between + self.within
        return self.between / total if total > 0 else 0.0


@dataclass(frozen=True)
class SeedAnalysis:
    """The result of `analyse`.

    Attributes:
        samples: N, the number of seeds.
        size: S, the number of elements of one seed.
        components: (N, 2), the first two principal components of the standardised seeds.
        explained: Shares of the variance that the two components explain.
        task: How well the seeds tell the tasks apart.
        label: How well the seeds tell the classes apart.
    """

    samples: int
    size: int
    components: Array
    explained: tuple[float, float]
    task: Separation
    label: Separation


def write_seeds(
    path: Path,
    ids: Sequence[str],
    domains: Sequence[str],
    labels: Sequence[str],
    splits: Sequence[str],
    seeds: Array,
    **more: Sequence[str] | Array,
) -> None:
    """Write seeds to Parquet with columns id, domain, label, split (strings) and seed (a list of S float32).

    Args:
        path: The file; it is replaced as a whole, or not at all.
        ids: N ids of samples.
        domains: Name of each sample's domain, N.
        labels: Name of each sample's label, N.
        splits: ``train``, ``val`` or ``test`` for each sample, N.
        seeds: The seeds, (N, S).
        more: Further columns, as for `write_samples`.
    """
    names = dict(zip(COLUMNS, (ids, domains, labels, splits), strict=True))
    write_samples(path, {**names, **more, "seed": seeds})


def read_seeds(path: Path) -> Seeds:
    """Read a file of seeds that `write_seeds` wrote.

    Raises:
        UserError: the file does not exist, is of another kind, has columns of other types, a null, seeds of several
            sizes or no rows, or has far more rows than its bytes can hold.
    """
    forms: dict[str, Form] = {**dict.fromkeys(COLUMNS, "text"), "seed": "vector"}
    found = read_samples(path, forms, f"seeds {str(path)!r}")
    ids, domains, labels, splits = (found[name] for name in COLUMNS)
    return Seeds(ids, domains, labels, splits, found["seed"])


def analyse(seeds: Seeds) -> SeedAnalysis:
    """Measure how well the seeds tell tasks and classes apart.

    Raises:
        UserError: there are fewer than 2 seeds, or some are not finite.
    """
    count, size = seeds.vectors.shape
    if count < 2:
        raise UserError(f"an analysis needs at least 2 seeds, got {count}")
    if not np.isfinite(seeds.vectors).all():
        raise UserError("an analysis needs finite seeds, and some hold NaN or infinity")
    vectors = seeds.vectors.astype(np.float64)
    standard = _standardise(vectors)
    components, explained = _pca(standard)
    task, label = (_separation(vectors, standard, np.array(names)) for names in (seeds.domains, seeds.labels))
    return SeedAnalysis(count, size, components, explained, task, label)


def seed_sentence(analysis: SeedAnalysis) -> str:
    """Return a sentence on whether the mapping net tells the tasks apart.

    It does if a linear probe makes at most half the errors of always naming the largest task. It does in part if the
    probe's accuracy is above that of always naming the largest task by more than three binomial standard errors.
    """
    task, label = analysis.task, analysis.label
    if task.groups < 2:
        return "There is one task only, so there is nothing for the mapping net to tell apart."
    if task.probe is None:
        return "A task has a single image, too few to say whether the mapping net tells the tasks apart."
    luck = 3 * (task.chance * (1 - task.chance) / analysis.samples) ** 0.5
    if 1 - task.probe <= (1 - task.chance) / 2:
        verdict = "tells the tasks apart"
    elif task.probe > task.chance + luck:
        verdict = "tells the tasks apart in part"
    else:
        verdict = "does not tell the tasks apart"
    classes = ""
    if label.probe is not None:
        classes = f", and the class of {label.probe:.1%} ({label.chance:.1%})"
    return (
        f"The mapping net {verdict}: from the seed alone, a linear probe names the task of {task.probe:.1%} of the "
        f"images (always naming the largest: {task.chance:.1%}){classes}; "
        f"{task.eta_squared:.0%} of the seeds' variance lies between tasks."
    )


def _standardise(vectors: Array) -> Array:
    """Return the numbers of the seeds that vary, each with mean 0 and variance 1; one column of 0 if none does."""
    centred = vectors - vectors.mean(axis=0)
    spread = centred.std(axis=0)
    varies = spread > 1e-6 * max(float(abs(vectors).max()), 1e-12)  # float32 has noise of its own
    return centred[:, varies] / spread[varies] if varies.any() else np.zeros((len(vectors), 1))


def _pca(standard: Array) -> tuple[Array, tuple[float, float]]:
    from sklearn.decomposition import PCA

    components, explained = np.zeros((len(standard), 2)), np.zeros(2)
    if standard.any():
        count = min(2, standard.shape[1])
        pca = PCA(count, random_state=0)
        components[:, :count] = pca.fit_transform(standard)
        explained[:count] = pca.explained_variance_ratio_
    return components, (float(explained[0]), float(explained[1]))


def _separation(vectors: Array, standard: Array, names: Array) -> Separation:
    """Measure one grouping of seeds (N, S), standardised (N, S'), by their groups' names (N,)."""
    groups, members = np.unique(names, return_inverse=True)
    sizes = np.bincount(members)
    share = sizes / len(names)
    means = np.stack([vectors[members == group].mean(axis=0) for group in range(len(groups))])
    between = float((share[:, None] * (means - vectors.mean(axis=0)) ** 2).sum())
    within = float(((vectors - means[members]) ** 2).sum(axis=1).mean())
    defined = len(groups) > 1 and sizes.min() > 1
    return Separation(
        groups=len(groups),
        silhouette=_silhouette(standard, members) if defined else None,
        probe=_probe(standard, members, int(sizes.min())) if defined else None,
        chance=float(share.max()),
        between=between,
        within=within,
    )


def _silhouette(standard: Array, members: Array) -> float:
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import train_test_split

    if len(standard) > SILHOUETTE_SAMPLE:
        standard, _, members, _ = train_test_split(
            standard, members, train_size=SILHOUETTE_SAMPLE, stratify=members, random_state=0
        )
    return float(silhouette_score(standard, members))


def _probe(standard: Array, members: Array, smallest: int) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = StratifiedKFold(min(FOLDS, smallest), shuffle=True, random_state=0)
    return float(cross_val_score(LogisticRegression(max_iter=2000), standard, members, cv=folds).mean())
