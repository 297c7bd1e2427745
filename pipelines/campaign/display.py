"""The table that the terminal shows while a campaign runs."""

import time
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metalora.report.campaign import is_accuracy
from metalora.train.reporter import Progress
from pipelines.campaign.trials import PARAMETERS, TrialRecord, direction
from pipelines.run.console import LINE_SECONDS, inform, warn
from pipelines.run.folder import last_line
from pipelines.verbosity import is_quiet

ROWS = 12


class CampaignDisplay:
    """A live table on a terminal; elsewhere (a job's log) one line for every trial that ends, and one every 10 s.

    Args:
        console: The console to write to.
        name: Name of the campaign.
        objective: The metric that orders the table.
        total: Number of all trials; None: not known.
        seconds: Time limit of the campaign; None: no limit.
    """

    def __init__(self, console: Console, name: str, objective: str, total: int | None, seconds: float | None) -> None:
        self.console = console
        self.name = name
        self.objective = objective
        self.sign = 1 if direction(objective) == "max" else -1
        self.total = total
        self.seconds = seconds
        self.began = time.monotonic()
        self.records: dict[str, TrialRecord] = {}
        self.states: dict[str, str] = {}
        self.ended_before = 0
        self.printed = self.began
        self.live = Live(console=console, transient=True, refresh_per_second=2, get_renderable=self.table)

    def __enter__(self) -> "CampaignDisplay":
        if self.console.is_terminal and not is_quiet():
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.live.stop()
        if self.records:
            self.console.print(self.summary(), soft_wrap=True)

    def say(self, text: str) -> None:
        """Show a message to the user."""
        warn(self.console, text)

    def begin(self, records: Mapping[str, TrialRecord]) -> None:
        """Set the trials of an earlier part of the campaign."""
        self.records = dict(records)
        self.ended_before = len(self._ended())

    def progress(self, name: str, progress: Progress) -> None:
        """Update the progress of a trial."""
        if progress.epoch:
            self.states[name] = f"epoch {progress.epoch}/{progress.epochs}"
        else:
            self.states[name] = f"{progress.phase}, {100 * progress.step // max(1, progress.total)} %"
            if name not in self.records and not self.console.is_terminal:
                self._line(f"{name}: {self.states[name]}")

    def update(self, records: Mapping[str, TrialRecord]) -> None:
        """Update the records of the trials."""
        before, self.records = self.records, dict(records)
        if self.console.is_terminal:
            return
        for name, record in self.records.items():
            if record.status != "running" and (name not in before or before[name].status == "running"):
                tell = warn if record.status == "failed" else inform
                tell(self.console, f"{name}: {record.status}{self._reached(record)}")
        self._line(self.summary())

    def summary(self) -> str:
        """Return the line of counts, first trial and time left."""
        counts = {status: 0 for status in ("running", "finished", "stopped", "failed")}
        for record in self.records.values():
            counts[record.status] += 1
        line = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "starting"
        line += f" of {self.total} trials" if self.total else ""
        best = self.best()
        if best is not None:
            extreme = "highest" if self.sign > 0 else "lowest"
            value = _shown(self.objective, best.result[self.objective])
            line += f" | {extreme} {self.objective} {value}: {best.trial.name}"
        return line + self._left()

    def best(self) -> TrialRecord | None:
        """Return the best trial so far; None if no trial has a value."""
        known = [record for record in self.records.values() if self.objective in record.result]
        return max(known, key=lambda record: self.sign * record.result[self.objective], default=None)

    def table(self) -> Group:
        """Draw the table: the running trials, then the best of the ended ones."""
        table = Table(title=f"campaign {self.name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in ("trial", "state", self.objective, PARAMETERS, "settings"):
            table.add_column(heading, justify="right" if heading in (self.objective, PARAMETERS) else "left")
        running = [record for record in self.records.values() if record.status == "running"]
        ended = sorted(
            self._ended(), key=lambda r: -self.sign * r.result.get(self.objective, -self.sign * float("inf"))
        )
        for record in (running + ended)[:ROWS]:
            table.add_row(*self._row(record), style="" if record.status == "running" else "dim")
        hidden = len(self.records) - ROWS
        lines = [Text(f"... and {hidden} more")] if hidden > 0 else []
        return Group(table, *lines, Text(self.summary(), style="bold"))

    def _row(self, record: TrialRecord) -> tuple[str, ...]:
        state = self.states.get(record.trial.name, "starting") if record.status == "running" else record.status
        value, parameters = record.result.get(self.objective), record.result.get(PARAMETERS)
        settings = " ".join(f"{name}={value}" for name, value in record.trial.point.items())
        return (
            record.trial.name,
            state,
            "" if value is None else _shown(self.objective, value),
            "" if parameters is None else f"{parameters:,.0f}",
            settings,
        )

    def _reached(self, record: TrialRecord) -> str:
        if record.error:
            return f", {last_line(record.error)}"
        value = record.result.get(self.objective)
        epoch = record.result.get("epoch", 0)
        return "" if value is None else f", {self.objective} {_shown(self.objective, value)} after epoch {epoch:g}"

    def _ended(self) -> list[TrialRecord]:
        return [record for record in self.records.values() if record.status != "running"]

    def _left(self) -> str:
        """Estimate the time left from the trials that ended since the start."""
        spent = time.monotonic() - self.began
        ended = len(self._ended())
        estimates = [] if self.seconds is None else [self.seconds - spent]
        if self.total and self.total > ended > self.ended_before:
            estimates.append(spent / (ended - self.ended_before) * (self.total - ended))
        if not estimates:
            return ""
        minutes, seconds = divmod(max(0, int(min(estimates))), 60)
        return f" | about {minutes}:{seconds:02d} left"

    def _line(self, text: str) -> None:
        now = time.monotonic()
        if now - self.printed > LINE_SECONDS:
            self.printed = now
            inform(self.console, text)


def _shown(metric: str, value: float) -> str:
    """Return a metric's value as text: an accuracy in %, as in the report."""
    return f"{value:.1%}" if is_accuracy(metric) else f"{value:.4g}"
