"""The trials of a campaign: their specs, and their records in ``trial.json``."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, FiniteFloat, NonNegativeInt
from typing_extensions import TypedDict

from metalora.config import current_names, current_sections
from metalora.errors import UserError
from metalora.files import atomic_file
from metalora.reading import check_form, config_name, gate, read_json, read_yaml, short
from metalora.redact import redact
from metalora.registry import KINDS, Choice, listed
from pipelines.run.folder import CAMPAIGN, TRIAL, TRIALS

PARAMETERS, STEP_SECONDS = "parameters", "step_seconds"
LETTERS = {"rank": "r", "mapping_depth": "d", "lr": "lr"}  # in the names of trials, by setting
LONGEST = 80  # characters of a trial's methods and settings in its name
Point = dict[str, Any]
Images = Annotated[int, Field(ge=0, le=10**12)]


@dataclass(frozen=True)
class TrialSpec:
    """One trial to run: a point with one random seed.

    Attributes:
        number: Number of the trial, from 0.
        point: Settings of the trial.
        random_seed: ``train.random_seed``.
        name: Name of the trial, of its folder and of its tracked run.
    """

    number: int
    point: Point
    random_seed: int
    name: str

    @staticmethod
    def of(number: int, point: Point, random_seed: int) -> "TrialSpec":
        """Make a spec and its name, such as ``007-tr-r4-d2-lr0.006-s0``, with the methods and options of the point."""
        methods = [one for setting in point if setting in KINDS for one in map(Choice.parse, listed(point[setting]))]
        parts = [part for one in methods for part in (one.name, *(f"{o}{value}" for o, value in one.options.items()))]
        parts += [f"{setting.rpartition('.')[2]}{value}" for setting, value in point.items() if "." in setting]
        parts += [f"{letters}{point[name]}" for name, letters in LETTERS.items() if name in point]
        words = re.sub(r"[^\w.-]", "_", "-".join(parts))[:LONGEST].strip("-")
        return TrialSpec(
            number, point, random_seed, "-".join([f"{number:03d}", *filter(None, [words]), f"s{random_seed}"])
        )


@dataclass(frozen=True)
class TrialRecord:
    """The record of a trial, which is its ``trial.json``.

    Attributes:
        trial: The trial.
        status: running, finished, stopped (early), or failed.
        error: Why it failed.
        parameters: Number of trained parameters.
        seconds: Seconds from its start to its end, over all parts.
        run_id: Id of its tracked run.
        result: The metrics that it last reported.
        checkpoint: Place of its last checkpoint.
    """

    trial: TrialSpec
    status: str = "running"
    error: str | None = None
    parameters: int | None = None
    seconds: float = 0.0
    run_id: str | None = None
    result: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str | None = None

    def write(self, folder: Path) -> None:
        """Write ``trial.json`` into the trial's folder; a checkpoint in the campaign's folder gets a relative path."""
        values = asdict(self)
        values = {**values.pop("trial"), **values}
        campaign = folder.parents[1].resolve()
        if self.checkpoint is not None and Path(self.checkpoint).is_relative_to(campaign):
            values["checkpoint"] = str(Path(self.checkpoint).relative_to(campaign))
        if self.error is not None:
            values["error"] = redact(self.error)
        values["result"] = {name: value for name, value in self.result.items() if math.isfinite(value)}
        with atomic_file(folder / TRIAL) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def but(self, **changes: Any) -> "TrialRecord":
        """Return a copy with changes."""
        return replace(self, **changes)


class _File(TypedDict):
    """The form of ``trial.json``."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    number: NonNegativeInt
    point: Point
    random_seed: NonNegativeInt
    name: str
    status: NotRequired[Literal["running", "finished", "stopped", "failed"]]
    error: NotRequired[str | None]
    parameters: NotRequired[NonNegativeInt | None]
    seconds: NotRequired[FiniteFloat]
    run_id: NotRequired[str | None]
    result: NotRequired[dict[str, FiniteFloat]]
    checkpoint: NotRequired[str | None]


def read_trials(folder: Path) -> list[TrialRecord]:
    """Return a campaign's trials in the order of their numbers.

    Raises:
        UserError: a ``trial.json`` cannot be read, or belongs to another trial.
    """
    files = folder.glob(f"{TRIALS}/*/{TRIAL}")
    return sorted(map(read_trial, files), key=lambda record: record.trial.number)


def read_trial(file: Path) -> TrialRecord:
    """Read one ``trial.json``; see `read_trials`."""
    what = f"trial {file}"
    with gate(what):
        content = current_names("trial", read_json(file, what))
    values: dict[str, Any] = dict(check_form(content, _File, what))
    if values["name"] != file.parent.name:  # it becomes part of paths
        raise UserError(f"{what} belongs to trial {short(values['name'])}: its folder must have that name")
    trial = TrialSpec(*(values.pop(field.name) for field in fields(TrialSpec)))
    checkpoint = values.get("checkpoint")
    if checkpoint is not None and "://" not in checkpoint:
        values["checkpoint"] = str(file.resolve().parents[2] / checkpoint)
    return TrialRecord(trial, **values)


class _Search(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    metric: str
    mode: Literal["max", "min"]
    objectives: NotRequired[list[str]]


class PlanFile(TypedDict):
    """The form of ``campaign.yaml``."""

    campaign: _Search
    config: dict[str, dict[str, Any]]
    space: NotRequired[list[dict[str, str]]]
    data: NotRequired[str]
    images: NotRequired[dict[str, dict[str, Images]]]


def read_plan(folder: Path) -> PlanFile:
    """Read a campaign's ``campaign.yaml``.

    Raises:
        UserError: the file cannot be read, or lacks the objectives.
    """
    return check_plan(read_yaml(folder / CAMPAIGN), folder)


def check_plan(content: Mapping[str, Any], folder: Path) -> PlanFile:
    """Check the content of a campaign's ``campaign.yaml``; see `read_plan`."""
    plan: PlanFile = check_form(content, PlanFile, config_name(folder / CAMPAIGN))
    plan["config"] = current_sections(plan["config"])
    search: Any = current_names("campaign", plan["campaign"])
    plan["campaign"] = search
    return plan


def direction(objective: str) -> Literal["max", "min"]:
    """Return whether the largest or the smallest values of an objective are the best."""
    return "min" if objective.endswith("/loss") or objective in (PARAMETERS, STEP_SECONDS) else "max"


def best_point(records: Sequence[TrialRecord], objective: str) -> Point | None:
    """Return the point with the best mean over its finished trials; None if there is none."""
    best = best_trial(records, objective)
    return None if best is None else best.trial.point


def best_trial(records: Sequence[TrialRecord], objective: str) -> TrialRecord | None:
    """Return the best finished trial of the best point (see `best_point`); None if there is none."""
    points: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.status == "finished" and objective in record.result:
            points.setdefault(str(record.trial.point), []).append(record)
    sign = 1 if direction(objective) == "max" else -1

    def value(record: TrialRecord) -> float:
        return sign * record.result[objective]

    best = max(points.values(), key=lambda several: sum(map(value, several)) / len(several), default=[])
    return max(best, key=value, default=None)
