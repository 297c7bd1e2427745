"""Record the reports of a campaign's trials in their folders, their MLflow runs and the terminal.

Ray Tune calls the `Recorder`, and trials post events to the mailbox. The mailbox's courier handles both in order, so
that the search never waits for a file or a server.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ray import tune

from metalora.config import Config, to_yaml
from metalora.errors import UserError, one_line
from metalora.files import atomic_file
from metalora.redact import redact
from metalora.tracking.build import build_tracker
from metalora.tracking.tracker import NullTracker, Tracker
from metalora.train.reporter import Progress
from metalora.train.results import has_results
from pipelines.backend.mailbox import Courier, Event, Failure, Mailbox, Message
from pipelines.backend.ray_checkpoints import opened
from pipelines.campaign.display import CampaignDisplay
from pipelines.campaign.plan import Plan
from pipelines.campaign.trials import PARAMETERS, STEP_SECONDS, TrialRecord, TrialSpec
from pipelines.run.console import only_tells
from pipelines.run.folder import (
    CONFIG,
    ERROR,
    METRICS,
    TRIALS,
    last_line,
    run_params,
    run_tags,
    write_run_note,
)
from pipelines.run.log import RunLog, read_metrics
from pipelines.run.results import copy_results, upload_results

KEPT = (PARAMETERS, STEP_SECONDS, "epoch")
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "running": "KILLED"}


class Recorder(tune.Callback):  # type: ignore[misc]
    """Records the trials of a campaign.

    Args:
        plan: The plan of the campaign.
        folder: The campaign's folder.
        parent: Id of the campaign's MLflow run; None if it is not tracked.
        mailbox: The mailbox to which the trials report.
        display: The table in the terminal.
        records: The trials of an earlier part of the campaign.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        parent: str | None,
        mailbox: Mailbox,
        display: CampaignDisplay,
        records: Iterable[TrialRecord],
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.parent = parent
        self.display = display
        self.records = {record.trial.name: record for record in records}
        self.open: dict[str, OpenTrial] = {}
        self.early: list[Event] = []
        self.courier = Courier(mailbox, self.listen, display.say)

    def __enter__(self) -> "Recorder":
        self.courier.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.courier.__exit__()
        for name in list(self.open):
            self._close(name, "running", None)

    def __reduce__(self) -> Any:
        """Pickle as a bare callback in the settings that Tune keeps to restore from; a campaign resumes without it."""
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Begin or continue the folder and the run of a trial."""
        self.courier.later(lambda: self._start(trial.config["trial"]))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        """Record a trial's result."""
        named = {name: value for name, value in result.items() if "/" in name or name in KEPT}
        numbers = {name: float(value) for name, value in named.items() if isinstance(value, int | float)}
        self.courier.later(lambda: self._update(trial.config["trial"].name, result=numbers))

    def on_checkpoint(self, iteration: int, trials: Any, trial: Any, checkpoint: Any, **info: Any) -> None:
        """Record the place of a trial's checkpoint."""
        kind = checkpoint.filesystem.type_name
        place = checkpoint.path if kind == "local" else f"{kind}://{checkpoint.path}"
        # After what was posted before it: a trial that goes on from here does not report that again.
        self.courier.later(lambda: self._update(trial.config["trial"].name, checkpoint=place))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Keep the results of a trial that has finished, was stopped, or has reported why it failed."""
        self.courier.later(lambda: self.complete(trial.config["trial"].name))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record why a trial failed."""
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else "no reason is known"
        self.courier.later(lambda: self._failed(trial.config["trial"], text))

    def on_experiment_end(self, trials: Iterable[Any], **info: Any) -> None:
        """Record the trials that Tune gave up without a call, such as a trial that it could not start."""
        for trial in trials:
            if trial.status == tune.experiment.Trial.ERROR:
                self.on_trial_error(0, trials, trial)

    def settle(self, record: TrialRecord) -> None:
        """End a trial of an earlier part that had finished but is recorded as running; leave others as they are."""
        if record.status != "running" or record.checkpoint is None:
            return
        with opened(tune.Checkpoint(record.checkpoint)) as folder:
            through = has_results(folder)
        if through:
            self._start(record.trial)
            self.complete(record.trial.name)

    def complete(self, name: str) -> None:
        """End a trial as finished or stopped, by the content of its last checkpoint."""
        if name not in self.open:  # it has said already why it failed
            return
        record = self.records[name]
        checkpoint = record.checkpoint and tune.Checkpoint(record.checkpoint)
        if checkpoint:
            with opened(checkpoint) as results:
                if has_results(results):
                    copy_results(results, self.open[name].folder, self.display.say)
                    self._close(name, "finished", None)
                    return
        self._close(name, "stopped", None)

    def _start(self, trial: TrialSpec) -> None:
        if trial.name in self.open:  # restarted after a lost worker
            return
        record = self.records.get(trial.name, TrialRecord(trial)).but(status="running", error=None)
        config = self.plan.trial_config(trial)
        opened_trial = OpenTrial(config, self.folder / TRIALS / trial.name, record, self.parent, self.display.say)
        self.open[trial.name] = opened_trial
        self.records[trial.name] = opened_trial.record
        self.display.update(self.records)
        early, self.early = self.early, []
        for event in early:
            self.listen(event)

    def _update(self, name: str, **changes: Any) -> None:
        if name in self.open:
            record = self.records[name]
            if "result" in changes:
                changes["result"] = {**record.result, **changes["result"]}
            self.records[name] = record.but(**changes)
            self.records[name].write(self.open[name].folder)
            self.display.update(self.records)

    def _failed(self, trial: TrialSpec, error: str) -> None:
        if trial.name not in self.open:
            if trial.name in self.records and self.records[trial.name].status != "running":
                return  # it is noted already
            self._start(trial)
        if trial.name in self.open:  # it may have said itself why
            self._close(trial.name, "failed", error)

    def _close(self, name: str, status: str, error: str | None) -> None:
        trial = self.open.pop(name)
        record = self.records[name]
        known = record.result.get(PARAMETERS)
        self.records[name] = record.but(
            status=status,
            error=error,
            seconds=record.seconds + trial.seconds(),
            parameters=record.parameters if known is None else int(known),
        )
        self.records[name].write(trial.folder)
        trial.close(status, error)
        self.display.update(self.records)

    def listen(self, event: Event) -> None:
        """Record an event of a trial."""
        name, content = event.sender, event.content
        if isinstance(content, Message):
            self.display.say(f"{name}: {content.text}")
        elif isinstance(content, Progress):
            self.display.progress(name, content)
        elif name not in self.open:
            if name not in self.records or self.records[name].status == "running":
                self.early.append(event)  # Tune has yet to tell that it runs
        elif isinstance(content, Failure):
            self._close(name, "failed", content.text)
        else:
            self.open[name].log.metrics(content.step, content.values)
            if PARAMETERS in content.values:
                self._update(name, result={PARAMETERS: content.values[PARAMETERS]})


class OpenTrial:
    """A running trial: its folder, its tracked run and its log.

    Args:
        config: Settings of the trial.
        folder: Folder of the trial; made if it does not exist.
        record: Record of the trial.
        parent: Id of the campaign's tracked run.
        say: Called with a message if something could not be tracked.
    """

    def __init__(
        self, config: Config, folder: Path, record: TrialRecord, parent: str | None, say: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.began = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / CONFIG) as file:
            file.write_text(to_yaml(config), encoding="utf-8")
        self.say = say
        self.tracker, run_id = self._track(config, record, parent)
        write_run_note(folder, run_id, config.tracking.tracking_uri)
        self.record = record.but(run_id=run_id)
        self.record.write(folder)
        self.log = RunLog(folder / METRICS, self.tracker, say)

    def _track(self, config: Config, record: TrialRecord, parent: str | None) -> tuple[Tracker, str | None]:
        tracking = config.tracking
        tracker = build_tracker(tracking.tracking_uri, tracking.experiment, record.trial.name)
        tags = {
            **run_tags("trial", "tune"),
            "metalora.format": config.adapter.format.name,
            "metalora.campaign": self.folder.parents[1].name,
            "metalora.trial": record.trial.name,
            **({"mlflow.parentRunId": parent} if parent else {}),
        }
        try:
            return tracker, tracker.start(run_params(config), tags, record.run_id, read_metrics(self.folder / METRICS))
        except UserError as error:
            self.say(f"{record.trial.name} is not tracked: {error}")
            return NullTracker(), record.run_id

    def seconds(self) -> float:
        """Return the seconds since the trial was opened."""
        return time.monotonic() - self.began

    def close(self, status: str, error: str | None) -> None:
        """End the tracked run; a tracker that cannot be reached must not end the campaign."""
        with only_tells(lambda problem: self.say(f"{self.folder.name} is not tracked in full: {one_line(problem)}")):
            if status == "finished":
                upload_results(self.tracker, self.folder)
            self.tracker.tag("metalora.status", status)
            if error:
                with atomic_file(self.folder / ERROR) as file:
                    file.write_text(redact(error), encoding="utf-8")
                self.tracker.tag("metalora.error", redact(last_line(error)))
                self.tracker.artifact(self.folder / ERROR)
            self.tracker.finish(STATUS[status])
