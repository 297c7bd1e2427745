"""The plan of a campaign: its settings, which are kept on disk for resuming and reporting."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from metalora.config import Config, facts_of, from_dict, setting, spelled_out, to_dict
from metalora.errors import UserError
from metalora.places import movable
from metalora.reading import gate
from metalora.train.resume import differences
from pipelines.campaign.spaces import Space, put_all
from pipelines.campaign.trials import TrialSpec, direction, read_plan
from pipelines.options import plain
from pipelines.run.folder import CAMPAIGN


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class CampaignConfig:
    """How a campaign searches its space."""

    space: str = setting(
        free=True, default="paper", description="a space of tune_spaces/, or the path of a file like those"
    )
    searcher: Literal["grid", "random", "optuna"] = setting(
        default="optuna", description="all combinations (grid), random points, or Optuna's TPE"
    )
    scheduler: Literal["none", "asha", "median"] = setting(
        default="none", description="early stopping of trials: by asha, or if worse than the median of the others"
    )
    objectives: tuple[str, ...] = setting(
        default=(),
        description="metrics to optimize, the most important first: val/knn10, val/accuracy, val/loss, parameters, "
        "step_seconds, ... (default: val/knn at the largest K)",
    )
    repeats: int = setting(
        default=1, ge=1, description="trials per point, with random seeds from --random-seed on; their mean counts"
    )
    trials: int | None = setting(
        free=True, default=None, ge=1, description="points to try (default: all of a grid, 16 otherwise)"
    )
    hours: float | None = setting(
        free=True,
        default=None,
        gt=0,
        description="hours until all trials are stopped; a resumed campaign gets as many again",
    )
    total_epochs: int | None = setting(
        free=True,
        default=None,
        ge=1,
        description="start no new trial once all trials together have trained this many epochs",
    )
    grid_points: int = setting(default=4, ge=2, description="values per continuous range in a grid")
    grace_epochs: int = setting(default=1, ge=1, description="epochs before a trial may be stopped early")
    reduction_factor: float = setting(default=3, gt=1, description="asha keeps one trial in this many at each rung")
    search_seed: int = setting(default=0, ge=0, description="random seed of the searcher")
    concurrent_trials: Annotated[int, Field(ge=1)] | None = setting(
        free=True, default=None, description="most trials at a time (default: as many as CPUs and GPUs allow)"
    )
    share_images: bool = setting(
        free=True,
        default=True,
        description="decode all images once for all trials, into Ray's object store, if they fit there",
    )


@dataclass(frozen=True)
class Plan:
    """The plan of a campaign.

    Attributes:
        campaign: Settings of the search.
        config: Settings of every trial.
        space: The space.
        fingerprint: That of the data.
        images: Split -> domain -> number of images that a trial's metrics are over.
    """

    campaign: CampaignConfig
    config: Config
    space: Space
    fingerprint: str = ""
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def trial_config(self, trial: TrialSpec) -> Config:
        """Return the settings of a trial; their run name is that of its tracked run."""
        values = to_dict(self.config)
        put_all(values, trial.point)
        values["train"]["random_seed"] = trial.random_seed
        values["tracking"]["run_name"] = trial.name
        return from_dict(values)

    def random_seeds(self) -> range:
        """Return the random seeds of each point's repeats."""
        first = self.config.train.random_seed
        return range(first, first + self.campaign.repeats)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, as ``campaign.yaml`` has them."""
        lead = self.campaign.objectives[0]
        return {
            "campaign": {**plain(self.campaign), "metric": lead, "mode": direction(lead)},
            "space": self.space.describe(),
            "config": to_dict(self.config),
            "data": self.fingerprint,
            "images": {split: dict(counts) for split, counts in self.images.items()},
        }

    def check_same(self, folder: Path) -> None:
        """Check that a campaign to resume was begun with this plan.

        Raises:
            UserError: the plan has changed; the message names every change.
        """
        before, now = read_plan(folder), self.as_dict()
        with gate(f"{folder / CAMPAIGN}"):
            changes = differences(_comparable(before), _comparable(now))
        if before.get("data") != now["data"]:
            changes.append("the data differ")
        if changes:
            raise UserError(f"campaign {folder.name!r} cannot be resumed: {'; '.join(changes)}")


def _comparable(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must not change when a campaign is resumed, flat."""
    free = {field.name for field in dataclasses.fields(CampaignConfig) if facts_of(field).free}
    flat = {f"campaign.{name}": value for name, value in plan["campaign"].items() if name not in free}
    flat |= {f"space[{i}].{name}": value for i, one in enumerate(plan["space"]) for name, value in one.items()}
    defaults = to_dict(Config())
    for section in ("backbone", "adapter", "mapping", "data", "train", "evaluate"):
        # what older code did not know had its default
        settings = spelled_out({section: {**defaults[section], **plan["config"].get(section, {})}})[section]
        flat |= {f"{section}.{name}": movable(value) for name, value in settings.items()}
    del flat["data.data"]  # the fingerprint tells
    return flat
