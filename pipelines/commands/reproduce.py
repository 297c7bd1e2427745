"""``metalora reproduce table1``: the paper's comparison; every method is tuned alike and tested in new repeats."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked
from ray import tune
from rich.console import Console

from metalora.adapters.formats import FORMATS
from metalora.config import Config, current_names, to_dict
from metalora.errors import UserError, given_as
from metalora.evaluate.significance import Estimate, compare, estimate, sentence
from metalora.files import atomic_file
from metalora.reading import check_form, gate
from metalora.redact import redact_settings
from metalora.report.comparison import ORIGINAL, Results, Tuning, comparison_markdown, plot_comparison
from metalora.train.results import KNN
from pipelines.backend.cluster import Open, lasting_cluster
from pipelines.campaign.plan import CampaignConfig, Plan
from pipelines.campaign.run import run_campaign
from pipelines.campaign.spaces import Space
from pipelines.campaign.trials import TrialRecord, best_point, read_trials
from pipelines.command_line import add_resume, make_parser, parse
from pipelines.options import add_section, add_settings, given, plain, resolve, resolve_section, settings_of
from pipelines.run.claim import named_run
from pipelines.run.console import terminal
from pipelines.run.folder import CAMPAIGN, PLAN, TRIALS, continued, find_run, only_shows, read_report, read_settings
from pipelines.run.trust import check_places

TABLE, PICTURE, SCORES = "table1.md", "table1.png", "table1.json"
FRESH = 1000  # random seeds of the test begin so far beyond those that were tuned with


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class TableConfig:
    """The methods and backbones that the table compares, and how."""

    backbones: tuple[str, ...] = Field(
        default=("resnet20", "mixer_tiny"), min_length=1, description="backbones, one part of the table each"
    )
    formats: tuple[str, ...] = Field(
        default=("lora", "multi_lora", "cp", "tr"), min_length=1, description="formats to compare"
    )
    tuning_trials: int = Field(default=6, ge=2, description="learning rates that each format is tuned over")
    lr_low: float = Field(default=1e-3, gt=0, description="the lowest of these learning rates")
    lr_high: float = Field(default=3e-2, gt=0, description="the highest; the others are evenly spaced in log")
    tuning_repeats: int = Field(default=1, ge=1, description="trainings per learning rate, with different random seeds")
    fresh_repeats: int = Field(
        default=5,
        ge=2,
        description="trainings per format that test its best learning rate, with new random seeds",
    )

    def __post_init__(self) -> None:
        if self.lr_low >= self.lr_high:
            raise ValueError(f"lr_low {self.lr_low:g} must be below lr_high {self.lr_high:g}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora reproduce`` with command-line arguments.

    Raises:
        UserError: the command line or the earlier table cannot be used, or a training fails.
    """
    parser = make_parser(
        "metalora reproduce table1", "Compare original, static and generated adapters, as the paper does."
    )
    parser.add_argument("table", choices=["table1"], help="the paper's comparison of methods by k-NN accuracy")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, below the command line")
    add_resume(parser, "a table")
    add_section(parser, "table", TableConfig)
    add_settings(parser)
    options = parse(parser, arguments)
    for name in ("format", "rank", "lr", "backbone", "random_seed"):
        if hasattr(options, name):
            raise UserError(
                f"{name} is what the table varies: leave it out (see --formats, --lr-low, --backbones){given_as(name)}"
            )
    base: dict[str, Any] = {"cluster": {"workers": 1}, "adapter": {"parameter_budget": 110_000}}
    before: Mapping[str, Any] = {}
    earlier = None
    if options.resume:
        earlier = find_run(options.resume, Path(resolve_section(options, "cluster").output), PLAN, "table")
        recorded = read_settings(earlier, PLAN)
        what = f"table {earlier / PLAN}"
        with gate(what):
            before = current_names("table", check_form(recorded.get("table"), dict[str, Any], what))
        base = continued(earlier, recorded["config"])
    table: TableConfig = settings_of(TableConfig, {**before, **given(TableConfig, options)}, "table")
    config = resolve(options, base)
    check_places(config, options, earlier)
    with named_run(config, bool(options.resume), "table1", "reproduce table1") as (config, folder):
        plan = {"table": plain(table), "config": redact_settings(to_dict(config))}
        with atomic_file(folder / PLAN) as file:
            file.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
        reproduce(table, config, folder, terminal())


def reproduce(table: TableConfig, config: Config, folder: Path, console: Console) -> list[Results]:
    """Tune every format on every backbone, test the winners, and write the table.

    Args:
        table: The comparison.
        config: All other settings; ``tracking.run_name`` is the table's name.
        folder: Folder to write the table into; the campaigns lie beside it.
        console: The console to print to.

    Raises:
        UserError: a campaign cannot be run; finished parts stay, and ``--resume`` continues them.
    """
    for name in table.formats:
        FORMATS.get(name)
    found = []
    with lasting_cluster() as open_cluster:
        for backbone in table.backbones:
            settings = replace(config, backbone=replace(config.backbone, backbone=backbone))
            found.append(_compare(table, settings, open_cluster))
    text = comparison_markdown(found, PICTURE)
    with atomic_file(folder / TABLE) as file:
        file.write_text(text, encoding="utf-8")
    with atomic_file(folder / SCORES) as file:
        file.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n", encoding="utf-8")
    with only_shows("the picture", console.print):
        plot_comparison(found, folder / PICTURE)
    console.print(text, soft_wrap=True)
    console.print(f"written   {folder / TABLE}, {PICTURE}, {SCORES}", soft_wrap=True)
    return found


def _compare(table: TableConfig, config: Config, open_cluster: Open) -> Results:
    """Run the two campaigns of one backbone."""
    name = f"{config.tracking.run_name}-{config.backbone.backbone.rpartition('/')[2]}"
    rates = [float(f"{rate:.3g}") for rate in np.geomspace(table.lr_low, table.lr_high, table.tuning_trials)]
    tuning = _campaign(
        f"{name}-tune",
        Space("table1", tuple({"format": kind, "lr": tune.choice(rates)} for kind in table.formats), {}, {}),
        table.tuning_repeats,
        config,
        open_cluster,
    )
    objective = f"val/knn{max(config.evaluate.knn)}"
    trials = read_trials(tuning)
    winners = {}
    for kind in table.formats:
        mine = [record for record in trials if record.trial.point["format"] == kind]
        point = best_point(mine, objective)
        if point is None:
            errors = "; ".join(record.error or record.status for record in mine)
            raise UserError(f"no trial of {kind} finished ({errors}): see {tuning}")
        winners[kind] = point
    fresh = replace(config, train=replace(config.train, random_seed=config.train.random_seed + FRESH))
    space = Space("table1", tuple(winners.values()), {}, {})
    testing = _campaign(f"{name}-test", space, table.fresh_repeats, fresh, open_cluster)
    return read_results(config.backbone.backbone, testing, rates, winners, trials, objective)


def _campaign(name: str, space: Space, repeats: int, config: Config, open_cluster: Open) -> Path:
    """Run a grid, or the rest of it, to its end."""
    config = replace(config, tracking=replace(config.tracking, run_name=name))
    campaign = CampaignConfig(space=space.name, searcher="grid", repeats=repeats)
    resume = (Path(config.cluster.output) / name / CAMPAIGN).is_file()
    return run_campaign(Plan(campaign, config, space), resume, open_cluster)


def read_results(
    backbone: str,
    campaign: Path,
    rates: Sequence[float],
    winners: Mapping[str, Mapping[str, Any]],
    tuning: Sequence[TrialRecord],
    objective: str,
) -> Results:
    """Read the scores of the test trials.

    Raises:
        UserError: a trial has failed, so that the methods are no longer paired.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    shuffled: dict[str, dict[str, list[float]]] = {}
    parameters: dict[str, int] = {ORIGINAL: 0}
    for record in read_trials(campaign):
        if record.status != "finished":
            raise UserError(f"trial {record.trial.name} {record.status}: {record.error}; see {campaign}")
        trial = campaign / TRIALS / record.trial.name
        report = read_report(trial)
        with gate(f"report {trial / KNN}"):
            kind = record.trial.point["format"]
            parameters[kind] = record.parameters or 0
            _add(scores, kind, report["adapted"])
            if kind == next(iter(winners)):
                _add(scores, ORIGINAL, report["original"])
            if "shuffled" in report:
                _add(shuffled, f"{kind}, seeds shuffled", report["shuffled"])
    tuned = {
        kind: Tuning(point["lr"], point["lr"] in (min(rates), max(rates)), _curve(kind, tuning, objective))
        for kind, point in winners.items()
    }
    found = {metric: compare(by_method) for metric, by_method in scores.items()}
    return Results(
        backbone=backbone,
        repeats=next(iter(found.values())).repeats,
        parameters=parameters,
        tuning=tuned,
        scores=scores,
        estimates={metric: {m: _ends(e) for m, e in one.scores.items()} for metric, one in found.items()},
        controls={metric: {m: _ends(estimate(v)) for m, v in one.items()} for metric, one in shuffled.items()},
        sentences={metric: sentence(one) for metric, one in found.items()},
    )


def _add(scores: dict[str, dict[str, list[float]]], method: str, report: Mapping[str, Any]) -> None:
    for metric, value in flat_scores(report).items():
        scores.setdefault(metric, {}).setdefault(method, []).append(value)


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.mean, estimate.low, estimate.high


def _curve(kind: str, tuning: Sequence[TrialRecord], objective: str) -> dict[float, float]:
    """Return the objective by learning rate, averaged over the tuning repeats."""
    values: dict[float, list[float]] = {}
    for record in tuning:
        if record.trial.point["format"] == kind and record.status == "finished":
            values.setdefault(record.trial.point["lr"], []).append(record.result[objective])
    return {rate: float(np.mean(several)) for rate, several in sorted(values.items())}


def flat_scores(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracies in ``knn.json`` that the table shows, by GROUP: MEASURE."""
    parts = {"trained tasks": report}
    if "holdout" in report:
        parts["held-out tasks, seen gallery"] = report["holdout"]["seen"]
        parts["held-out tasks, own gallery"] = report["holdout"]["unseen"]
    scores = {}
    for title, part in parts.items():
        for k, value in part["overall"]["uniform"].items():
            scores[f"{title}: k-NN {k}"] = value
        scores[f"{title}: linear"] = part["linear"]
    return scores
