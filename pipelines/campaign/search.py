"""The searcher that tells Ray Tune which point to try next, with several repeats of each point."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.sample import Categorical, Domain, Integer, LogUniform

from pipelines.campaign.spaces import Space, plain_value
from pipelines.campaign.trials import Point, TrialSpec

TRIES = 1000  # draws of points that were tried before, after which a space has no more
WAYS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}


class Source(Protocol):
    """A source of points to try, each once: the same settings and random seed would give the same result again."""

    def ask(self) -> Point | None:
        """Return the next point; None if there are no more."""

    def tell(self, point: Point, values: Sequence[float] | None) -> None:
        """Learn a point's objectives, the mean over its repeats; None if none of its trials finished."""

    def recall(self, point: Point) -> None:
        """Learn of a point that an earlier part of the campaign has asked for."""


class ListSource:
    """A source of points that are known beforehand, or drawn without regard to results.

    Args:
        points: The points, of which some may be equal.
    """

    def __init__(self, points: Iterator[Point]) -> None:
        self.points = points
        self.asked: set[str] = set()

    def ask(self) -> Point | None:
        """Return the next point that was not asked for before."""
        point = next((one for one in islice(self.points, TRIES) if str(one) not in self.asked), None)
        self.asked.add(str(point))
        return point

    def tell(self, point: Point, values: Sequence[float] | None) -> None:
        """Ignore the results."""

    def recall(self, point: Point) -> None:
        """Skip the point: it is the next one of the same sequence."""
        self.ask()


class OptunaSource:
    """Optuna's TPE over a conditional space (Bergstra et al. 2011), for one objective or several.

    Args:
        space: The space.
        directions: ``max`` or ``min``, for each objective.
        random_seed: Random seed of the sampler.
    """

    def __init__(self, space: Space, directions: Sequence[Literal["max", "min"]], random_seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=random_seed)
        self.study = optuna.create_study(directions=[WAYS[way] for way in directions], sampler=sampler)
        self.space = space
        self.open: dict[str, Any] = {}
        self.told: dict[str, Sequence[float] | None] = {}

    def ask(self) -> Point | None:
        """Return the next point of the sampler; for one that has ended, the study learns its objectives again."""
        for _ in range(TRIES):
            point, trial = self._draw()
            if str(point) not in self.open | self.told:
                self.open[str(point)] = trial
                return point
            self._tell(trial, self.told.get(str(point)))
        return None

    def _draw(self) -> tuple[Point, Any]:
        """Return what the sampler suggests."""
        trial = self.study.ask()
        number = trial.suggest_categorical("alternative", range(len(self.space.alternatives)))
        point = {
            name: plain_value(_suggest(trial, f"{number}.{name}", value)) if isinstance(value, Domain) else value
            for name, value in self.space.alternatives[number].items()
        }
        return point, trial

    def tell(self, point: Point, values: Sequence[float] | None) -> None:
        """Give a point's objectives to the study."""
        self.told[str(point)] = values
        trial = self.open.pop(str(point), None)
        if trial is not None:  # older code ran some points several times
            self._tell(trial, values)

    def _tell(self, trial: Any, values: Sequence[float] | None) -> None:
        from optuna.trial import TrialState

        if values is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, list(values))

    def recall(self, point: Point) -> None:
        """Add a trial of this point to the study."""
        number = next(
            i for i, one in enumerate(self.space.alternatives) if one.keys() == point.keys() and _in(one, point)
        )
        parameters = {"alternative": number}
        for name, value in self.space.alternatives[number].items():
            if isinstance(value, Categorical):
                parameters[f"{number}.{name}"] = list(value.categories).index(point[name])
            elif isinstance(value, Domain):
                parameters[f"{number}.{name}"] = point[name]
        self.study.enqueue_trial(parameters)
        _, self.open[str(point)] = self._draw()


class CampaignSearch(Searcher):  # type: ignore[misc]
    """Gives Ray Tune one trial after another, and learns from the trials that end.

    Args:
        source: The source of points.
        random_seeds: The values of ``train.random_seed`` that each point is run with.
        objectives: Names of the metrics to optimize, the most important first.
        points: Largest number of points; None: no limit.
        total_epochs: No new trial starts once all trials together have trained this many epochs; None: no limit.
    """

    def __init__(
        self,
        source: Source,
        random_seeds: Sequence[int],
        objectives: Sequence[str],
        points: int | None = None,
        total_epochs: int | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.random_seeds = tuple(random_seeds)
        self.objectives = tuple(objectives)
        self.points = points
        self.total_epochs = total_epochs
        self.number = 0
        self.waiting: list[TrialSpec] = []
        self.running: dict[str, TrialSpec] = {}
        self.ended: dict[str, list[Sequence[float] | None]] = {}  # by point
        self.epochs: dict[str, int] = {}  # trained, by trial name

    def __reduce__(self) -> Any:
        """Pickle as a bare searcher in the settings that Tune keeps to restore from: a campaign resumes by `recall`."""
        return Searcher, ()

    def recall(self, past: Sequence[tuple[TrialSpec, Mapping[str, Any] | None]]) -> None:
        """Learn from the trials of an earlier part of the campaign, in the order of their numbers.

        Args:
            past: The trials, each with its last result; None for a trial to continue.
        """
        recalled = set()
        for trial, result in past:
            if str(trial.point) not in recalled:
                self.source.recall(trial.point)
                recalled.add(str(trial.point))
            if result is None:
                self.waiting.append(trial)
            else:
                self._note(trial, result)
                self._end(trial, result)
        self.number = len(past)
        while self.number % len(self.random_seeds):  # repeats of the last point that the earlier part did not get to
            self._queue(past[-1][0].point)

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's `TrialSpec` in Tune's form, or that there are no more trials."""
        if not self.waiting:
            point = None if self._spent() else self.source.ask()
            if point is None:
                return Searcher.FINISHED
            for _ in self.random_seeds:
                self._queue(point)
        trial = self.waiting.pop(0)
        self.running[trial_id] = trial
        return {"trial": trial}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Count the trained epochs."""
        self._note(self.running[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn from a trial; a point counts once all its repeats have ended."""
        trial = self.running.pop(trial_id)
        self._end(trial, {} if error or result is None else result)

    def _spent(self) -> bool:
        """Tell whether there are as many points, or trained epochs, as there may be."""
        enough = self.points is not None and self.number >= self.points * len(self.random_seeds)
        return enough or (self.total_epochs is not None and sum(self.epochs.values()) >= self.total_epochs)

    def _queue(self, point: Point) -> None:
        self.waiting.append(TrialSpec.of(self.number, point, self.random_seeds[self.number % len(self.random_seeds)]))
        self.number += 1

    def _note(self, trial: TrialSpec, result: Mapping[str, Any]) -> None:
        self.epochs[trial.name] = max(self.epochs.get(trial.name, 0), int(result.get("epoch", 0)))

    def _end(self, trial: TrialSpec, result: Mapping[str, Any]) -> None:
        known = all(np.isfinite(result.get(name, np.nan)) for name in self.objectives)
        values = [float(result[name]) for name in self.objectives] if known else None
        ended = self.ended.setdefault(str(trial.number // len(self.random_seeds)), [])
        ended.append(values)
        if len(ended) == len(self.random_seeds):
            well = [value for value in ended if value is not None]
            self.source.tell(trial.point, np.mean(well, axis=0).tolist() if well else None)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a campaign resumes from the files of its trials, see `recall`."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing; see `save`."""


def _suggest(trial: Any, name: str, domain: Domain) -> Any:
    if isinstance(domain, Categorical):
        return domain.categories[trial.suggest_categorical(name, range(len(domain.categories)))]
    logarithmic = isinstance(domain.sampler, LogUniform)
    if isinstance(domain, Integer):
        return trial.suggest_int(name, domain.lower, domain.upper - 1, log=logarithmic)
    return trial.suggest_float(name, domain.lower, domain.upper, log=logarithmic)


def _in(alternative: Mapping[str, Any], point: Point) -> bool:
    """Tell whether a point may be of an alternative."""
    for name, value in alternative.items():
        if isinstance(value, Categorical):
            if point[name] not in value.categories:
                return False
        elif not isinstance(value, Domain) and point[name] != value:
            return False
    return True
