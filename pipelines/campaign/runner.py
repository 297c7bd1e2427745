"""Run the trials of a campaign with Ray Tune: what they share, and which resources they take."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from metalora.adapters.formats import FORMATS
from metalora.errors import UserError
from metalora.registry import Choice
from metalora.train.feed import code_bytes
from pipelines.backend.cluster import gpus_per_worker, room_for_images
from pipelines.backend.mailbox import Mailbox
from pipelines.backend.prepare import Prepared
from pipelines.campaign.display import CampaignDisplay
from pipelines.campaign.plan import Plan
from pipelines.campaign.recorder import Recorder
from pipelines.campaign.search import CampaignSearch, ListSource, OptunaSource, Source
from pipelines.campaign.spaces import levels, number_of_points, sample
from pipelines.campaign.trial import Materials, run_trial, share
from pipelines.campaign.trials import Point, TrialRecord, direction, read_trials
from pipelines.run.console import inform
from pipelines.run.folder import METRICS, TRIALS
from pipelines.run.log import read_metrics
from pipelines.verbosity import log_level

DEFAULT_TRIALS = 16
STORAGE = "ray"
ENVIRONMENT = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a checkpoint may come before the first validation
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the recorder keeps what they would write
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the command as it does everywhere
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths are the user's
}


def number_of_trials(plan: Plan, points: Sequence[Point] | None) -> int | None:
    """Return how many trials a campaign will have, if that is known; with points: those of its grid."""
    campaign = plan.campaign
    if points is not None:
        most: int | None = min(len(points), campaign.trials or len(points))
    else:
        most = campaign.trials or (None if campaign.hours or campaign.total_epochs else DEFAULT_TRIALS)
        there = number_of_points(plan.space)
        most = there if most is None or (there is not None and there < most) else most
    return most and most * campaign.repeats


class CampaignRunner:
    """Runs a campaign's trials on a cluster that is up.

    Args:
        plan: The complete plan.
        folder: The campaign's folder.
        prepared: Data and networks.
        points: The points to run; None: the points that the searcher finds.
        console: The console for the live table.

    Raises:
        UserError: a trial does not fit the cluster.
    """

    def __init__(
        self, plan: Plan, folder: Path, prepared: Prepared, points: Sequence[Point] | None, console: Console
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.prepared = prepared
        self.points = points
        self.console = console
        self.gpus = gpus_per_worker(plan.config.cluster)
        self._check_nodes()

    def run(self, parent: str | None) -> None:
        """Run the remaining trials.

        Args:
            parent: Id of the campaign's tracked run.
        """
        mailbox = Mailbox()
        hours = self.plan.campaign.hours
        lead = self.plan.campaign.objectives[0]
        display = CampaignDisplay(self.console, self.folder.name, lead, self._total(), hours and hours * 3600)
        before = read_trials(self.folder)
        recorder = Recorder(self.plan, self.folder, parent, mailbox, display, before)
        for record in before:
            recorder.settle(record)
        before = list(recorder.records.values())
        display.begin({record.trial.name: record for record in before})
        with display, recorder:
            materials = self._materials(mailbox, before, display)
            tuner = self._tuner(materials, recorder, before)
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # Tune ignores its own verbosity
                tuner.fit()

    def _tuner(self, materials: Materials, recorder: Recorder, before: Sequence[TrialRecord]) -> tune.Tuner:
        plan = self.plan
        os.environ.update(ENVIRONMENT)
        total = self._total()
        search = CampaignSearch(
            self._source(len(before)),
            plan.random_seeds(),
            plan.campaign.objectives,
            total and total // plan.campaign.repeats,
            plan.campaign.total_epochs,
        )
        search.recall([(r.trial, None if r.status == "running" else self._outcome(r)) for r in before])
        scheduler = self._scheduler()
        for record in before:
            folder = self.folder / TRIALS / record.trial.name
            replay(scheduler, record.trial.name, reported(folder, plan.config.evaluate.validate_every))
        trainable = tune.with_resources(tune.with_parameters(run_trial, materials=materials), self._resources())
        return tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=self._concurrent(),
                time_budget_s=plan.campaign.hours and plan.campaign.hours * 3600,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=time.strftime("part-%Y%m%d-%H%M%S"),
                storage_path=self._storage(),
                failure_config=tune.FailureConfig(max_failures=plan.config.cluster.retries),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=plan.config.train.keep_checkpoints),
                callbacks=[recorder],
                verbose=0,
            ),
        )

    def _outcome(self, record: TrialRecord) -> dict[str, Any]:
        return dict(record.result) if record.status != "failed" else {"epoch": record.result.get("epoch", 0)}

    def _storage(self) -> str:
        remote = self.plan.config.cluster.storage_path
        return (
            f"{remote.rstrip('/')}/{self.folder.name}/{STORAGE}" if remote else str((self.folder / STORAGE).resolve())
        )

    def _materials(self, mailbox: Mailbox, before: Sequence[TrialRecord], display: CampaignDisplay) -> Materials:
        """Compute the materials that the trials share, once."""
        networks = ray.put(self.prepared.networks)
        keep, size = self._keep_images()
        settings = self.plan.config.cluster
        began = time.monotonic()
        task = share.options(num_cpus=settings.cpus_per_worker, num_gpus=self.gpus)
        kinds = self._extractor_kinds()
        shared = task.remote(self.plan, networks, mailbox, keep, kinds, self.prepared.decoded if keep else None)
        ray.wait([shared], fetch_local=False)
        try:
            ray.get(shared)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, UserError) else error from None
        seen = (
            f"{len(self.prepared.table):,} images{'' if keep else ' (not kept: too large)'} of {size / 2**20:,.0f} MiB"
        )
        what = ", ".join(["original features", *(f"extractor features ({kind})" for kind in kinds), seen])
        inform(display.console, f"shared by all trials, computed once in {time.monotonic() - began:.1f} s: {what}")
        checkpoints = {r.trial.name: r.checkpoint for r in before if r.checkpoint is not None}
        nested = (self.folder / STORAGE).resolve()
        return Materials(self.plan, mailbox, networks, shared, checkpoints, self._storage(), nested, log_level())

    def _keep_images(self) -> tuple[bool, int]:
        """Tell whether the images fit into Ray's object store, and their bytes."""
        size = code_bytes(len(self.prepared.table), self.prepared.backbone.inputs)
        return self.plan.campaign.share_images and size <= room_for_images(), size

    def _extractor_kinds(self) -> list[str]:
        """Return every ``extractor_features`` that a trial may ask for."""
        kinds: set[str] = set()
        config = self.plan.config
        for alternative in self.points or self.plan.space.alternatives:
            formats = levels(alternative.get("format", config.adapter.format), 2)
            if any(FORMATS.get(Choice.parse(name).name).seed == "generated" for name in formats):
                kinds.update(levels(alternative.get("extractor_features", config.mapping.extractor_features), 2))
        return sorted(kinds)

    def _total(self) -> int | None:
        return number_of_trials(self.plan, self.points)

    def _source(self, past: int) -> Source:
        """Return the source of points, for a campaign that has already run ``past`` trials."""
        campaign = self.plan.campaign
        if self.points is not None:
            return ListSource(iter(self.points))
        if campaign.searcher == "random":
            return ListSource(sample(self.plan.space, campaign.search_seed))
        ways = list(map(direction, campaign.objectives))
        # The same random seed would draw the first points again.
        return OptunaSource(self.plan.space, ways, campaign.search_seed + past)

    def _scheduler(self) -> Any:
        campaign = self.plan.campaign
        common = {"time_attr": "epoch", "metric": campaign.objectives[0], "mode": direction(campaign.objectives[0])}
        if campaign.scheduler == "asha":
            return tune.schedulers.ASHAScheduler(
                **common,
                max_t=max(self.plan.config.train.epochs, campaign.grace_epochs + 1),
                grace_period=campaign.grace_epochs,
                reduction_factor=campaign.reduction_factor,
            )
        if campaign.scheduler == "median":
            return tune.schedulers.MedianStoppingRule(**common, grace_period=campaign.grace_epochs)
        return tune.schedulers.FIFOScheduler()

    def _resources(self) -> dict[str, float]:
        """Return the resources that Tune reserves per trial; a driver of workers reserves none that they need."""
        settings = self.plan.config.cluster
        if settings.workers > 1:
            return {"CPU": 0, HEAD: 0.001}
        return {"CPU": settings.cpus_per_worker, **({"GPU": self.gpus} if self.gpus else {})}

    def _concurrent(self) -> int | None:
        """Return how many trials run at a time; nested ones only as many as have room for all their workers."""
        asked, settings = self.plan.campaign.concurrent_trials, self.plan.config.cluster
        if settings.workers <= 1:
            return asked
        there = ray.cluster_resources()
        each = {"CPU": settings.cpus_per_worker, "GPU": self.gpus}
        room = min(int(there.get(kind, 0) / (n * settings.workers) + 1e-9) for kind, n in each.items() if n)
        return min(asked or room, room)

    def _check_nodes(self) -> None:
        """Check that some node has room for a worker.

        Raises:
            UserError: a worker wants more CPUs or GPUs than the largest node has.
        """
        settings = self.plan.config.cluster
        for kind, each in (("CPU", settings.cpus_per_worker), ("GPU", self.gpus)):
            most = max(node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"])
            if each > most:
                raise UserError(
                    f"a worker with {each:g} {kind}s fits no node of the cluster, the largest has {most:g}: "
                    f"lower --{kind.lower()}s-per-worker"
                )


HEAD = "node:__internal_head__"  # every Ray head has one of it


def _name(trial: Any) -> str:
    name: str = trial.config["trial"].name
    return name


def replay(scheduler: Any, name: str, results: Iterable[Mapping[str, float]]) -> None:
    """Give a scheduler the reports of a trial from an earlier part, so that it also judges other trials by them."""
    past = Past(name)
    for result in results:
        scheduler.on_trial_add(None, past)
        scheduler.on_trial_complete(None, past, dict(result))


def reported(folder: Path, every: int) -> list[dict[str, float]]:
    """Return a trial's validations, one per ``every`` epochs, in the form that Tune gets them."""
    validations = [values for _, _, values in read_metrics(folder / METRICS) if "val/loss" in values]
    return [{**values, "epoch": every * (number + 1)} for number, values in enumerate(validations)]


class Past:
    """A stand-in for a trial of an earlier part: schedulers use only its id."""

    def __init__(self, name: str) -> None:
        self.trial_id = name
