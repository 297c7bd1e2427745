"""Run a campaign, from its plan to its champion."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml
from rich.console import Console

from metalora.build import build_model
from metalora.errors import UserError, given_as
from metalora.redact import redact_settings
from metalora.registry import nearest
from metalora.tracking.build import build_tracker
from metalora.tracking.mlflow_tracker import CHAMPION
from metalora.tracking.tracker import Tracker, flatten
from metalora.train.selection import validation_metrics
from pipelines.backend.cluster import Open, cluster
from pipelines.backend.prepare import Prepared, prepare
from pipelines.campaign.plan import Plan
from pipelines.campaign.runner import CampaignRunner, number_of_trials
from pipelines.campaign.spaces import grid
from pipelines.campaign.trials import PARAMETERS, STEP_SECONDS, Point, TrialRecord, TrialSpec, best_trial, read_trials
from pipelines.run.claim import named_run, to_continue
from pipelines.run.console import inform, only_tells, terminal, warn
from pipelines.run.folder import (
    CAMPAIGN,
    TRIALS,
    run_tags,
    upload_model,
)
from pipelines.run.rehearsal import ENDED, show_training
from pipelines.run.tracking import start_tracking, tell_untracked


def run_campaign(plan: Plan, resume: bool = False, open_cluster: Open = cluster, dry_run: bool = False) -> Path:
    """Run a campaign to its end, or resume one.

    Args:
        plan: Plan of the campaign.
        resume: Whether to resume the campaign named ``tracking.run_name``.
        open_cluster: Opens the cluster when it is needed.
        dry_run: Whether to stop before anything is tried, written or tracked, and only print what would be.

    Returns:
        The campaign's folder.

    Raises:
        UserError: settings, data or cluster do not allow the campaign; trials that were run stay.
    """
    with named_run(plan.config, resume, Path(plan.space.name).stem, "tune") as (config, folder):
        _run(replace(plan, config=config), folder, resume, open_cluster, terminal(), dry_run)
    return folder


def _run(plan: Plan, folder: Path, resume: bool, open_cluster: Open, console: Console, dry_run: bool) -> None:
    config = plan.config
    tracker = build_tracker(config.tracking.tracking_uri, config.tracking.experiment, folder.name)
    prepared = prepare(config, partial(inform, console), warn=partial(warn, console))
    plan = _complete(plan, prepared)
    if resume:
        plan.check_same(folder)
    points = _that_fit(plan, prepared, console) if plan.campaign.searcher == "grid" else None
    if dry_run:
        _rehearse(plan, prepared, points, console)
        return
    complete = resume and points is not None
    complete = complete and _is_complete(read_trials(folder), len(points or ()) * plan.campaign.repeats)
    if complete:
        console.print(
            f"all {len(points or ())} points of the grid have been tried, nothing is left to run (another --space or "
            "--searcher is another campaign)",
            soft_wrap=True,
        )
    with nullcontext() if complete else open_cluster(config.cluster):
        runner = None if complete else CampaignRunner(plan, folder, prepared, points, console)
        parent = _start(tracker, plan, folder)
        status = "FAILED"
        try:
            if runner is not None:
                runner.run(parent)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except UserError as error:
            error.add_note(f"once that is mended, {to_continue(folder, 'tune')}")
            raise
        finally:
            _finish(tracker, plan, prepared, folder, status, console)


def _rehearse(plan: Plan, prepared: Prepared, points: Sequence[Point] | None, console: Console) -> None:
    """Print what a campaign would try."""
    campaign, total = plan.campaign, number_of_trials(plan, points)
    trials = "trials" if total is None else f"{total:,} trials"
    searched = ", ".join(sorted(plan.space.searched))
    console.print(f"space     {plan.space.name}: {searched}", soft_wrap=True)
    console.print(
        f"campaign  {trials}, {campaign.searcher} search, {campaign.repeats} for each point, judged by "
        f"{campaign.objectives[0]}",
        soft_wrap=True,
    )
    console.print("each trial, before its own point:")
    show_training(console, plan.config, prepared.model.count_parameters(), prepared.steps)
    console.print(ENDED)


def _complete(plan: Plan, prepared: Prepared) -> Plan:
    """Return the plan with what depends on the data, after checking the objectives."""
    config, table = plan.config, prepared.table
    objectives = plan.campaign.objectives or (f"val/knn{max(config.evaluate.knn)}",)
    if not len(table.rows("val")):
        raise UserError("a campaign is judged on the validation split, and the data have none (--val-fraction)")
    if not config.evaluate.validate_every:
        raise UserError("a campaign is judged on the validation split: validate_every must be 1 or more"
                        f"{given_as('validate_every')}")  # fmt: skip
    overall, by_domain = validation_metrics(config, table)
    names = [PARAMETERS, STEP_SECONDS, *overall]
    for objective in objectives:
        if objective not in names + by_domain:
            raise UserError(
                f"no trial reports the objective {objective!r}{nearest(objective, names + by_domain)} "
                f"(reported: {', '.join(names)}, and by domain)"
            )
    if plan.campaign.scheduler != "none" and not objectives[0].startswith("val/"):
        raise UserError(
            f"scheduler {plan.campaign.scheduler} needs a leading objective of val/..., got {objectives[0]!r}"
        )
    images = {split: table.count(split) for split in ("val", "test")}
    return replace(
        plan, campaign=replace(plan.campaign, objectives=objectives), fingerprint=table.fingerprint, images=images
    )


def _that_fit(plan: Plan, prepared: Prepared, console: Console) -> list[Point]:
    """Return the points of a grid whose adapters can be built.

    Raises:
        UserError: there are none.
    """
    fitting, reasons = [], []
    verdicts: dict[str, str] = {}
    for point in grid(plan.space, plan.campaign.grid_points):
        config = plan.trial_config(TrialSpec.of(0, point, 0))
        key = f"{config.adapter} {config.mapping}"
        if key not in verdicts:
            try:
                build_model(config, prepared.backbone, prepared.extractor, prepared.table.labels, prepared.initial)
                verdicts[key] = ""
            except UserError as error:
                verdicts[key] = str(error)
        if verdicts[key]:
            reasons.append(f"{point}: {verdicts[key]}")
        else:
            fitting.append(point)
    if not fitting:
        raise UserError(f"no point of space {plan.space.name!r} fits the backbone; {reasons[0]}")
    if reasons:
        console.print(f"{len(reasons)} points do not fit the backbone and are left out, the first: {reasons[0]}",
                      style="yellow", soft_wrap=True)  # fmt: skip
    return fitting


def _is_complete(records: Sequence[TrialRecord], total: int) -> bool:
    """Tell whether all trials of a grid have ended."""
    return len(records) == total and all(record.status != "running" for record in records)


def _start(tracker: Tracker, plan: Plan, folder: Path) -> str | None:
    """Start or continue the campaign's tracked run, the parent of its trials'; return its id."""
    config, described = plan.config, plan.as_dict()
    params = {f"campaign.{name}": value for name, value in described["campaign"].items()}
    params |= {f"space.{i}": value for i, value in enumerate(described["space"])}
    settings = {CAMPAIGN: yaml.safe_dump(redact_settings(described), sort_keys=False)}
    tags = run_tags("campaign", "tune")
    return start_tracking(tracker, folder, config.tracking.tracking_uri, {**params, **flatten(config)}, tags, settings)


def _finish(tracker: Tracker, plan: Plan, prepared: Prepared, folder: Path, status: str, console: Console) -> None:
    """Register the champion, report, and end the tracked run, each whatever becomes of the others."""
    best = best_trial(read_trials(folder), plan.campaign.objectives[0])
    tell = tell_untracked(f"tune --resume {folder.name}", console)
    if status == "FINISHED" and best is not None:
        with only_tells(tell):
            tracker.metrics((0, time.time(), {n: v for n, v in best.result.items() if n in plan.campaign.objectives}))
            _register(plan, prepared, folder, best, console)
    if status == "FINISHED":
        with only_tells(tell):
            _report(tracker, folder, console)
    with only_tells(tell):
        tracker.finish(status)
    console.print(f"MLflow    {tracker.where()}", soft_wrap=True)


def _report(tracker: Tracker, folder: Path, console: Console) -> None:
    from pipelines.campaign.report import read_campaign, verdict, write_report

    campaign = read_campaign(folder)
    report = write_report(folder, campaign)
    lines = verdict(campaign)
    for line in lines:
        console.print(line, soft_wrap=True)
    tracker.tag("metalora.verdict", "\n".join(lines))
    tracker.artifact(report)
    console.print(f"report    {report / 'report.md'}", soft_wrap=True)


def _register(plan: Plan, prepared: Prepared, campaign: Path, best: TrialRecord, console: Console) -> None:
    """Log the model of the first trial by validation to its run, registered under the campaign's name."""
    tracking = plan.config.tracking
    folder = campaign / TRIALS / best.trial.name
    point = " ".join(f"{name}={value}" for name, value in best.trial.point.items())
    console.print(f"first     {folder}  ({point})", soft_wrap=True)
    if not tracking.log_model or best.run_id is None or tracking.tracking_uri == "none":
        return
    tracker = build_tracker(tracking.tracking_uri, tracking.experiment, best.trial.name)
    tracker.start({}, {}, best.run_id, [])
    upload_model(tracker, folder, prepared.backbone, prepared.extractor, campaign.name)
    tracker.finish("FINISHED")
    name = f"models:/{campaign.name}@{CHAMPION}"
    console.print(f"champion  {name}   (metalora evaluate {name})", soft_wrap=True)
