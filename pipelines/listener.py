"""The driver's end of a training: terminal, ``metrics.jsonl`` and tracker."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from metalora.tracking import Record, Tracker
from metalora.train.checkpoint import CheckpointFolder
from metalora.train.reporter import Progress, Write
from pipelines.console import ProgressDisplay


class MetricsFile:
    """Records a run's metrics in ``metrics.jsonl`` and with the tracker.

    After a restart the same steps are trained, and reported, again: what is known already is not recorded twice.

    Args:
        file: ``metrics.jsonl`` of the run: a line for every record, whatever happens to the tracker.
        tracker: Started.
        say: Told when the file cannot be written.
    """

    def __init__(self, file: Path, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.file = file
        self.tracker = tracker
        self.say = say
        self.last: dict[str, int] = {}
        if file.exists() and not file.read_bytes().endswith(b"\n"):  # a crash cut the last line off
            with file.open("a", encoding="utf-8") as lines:
                lines.write("\n")
        for step, _, values in read_metrics(file):
            self.last.update(dict.fromkeys(values, step))

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics of an optimizer step."""
        new = {name: value for name, value in values.items() if self.last.get(name, -1) < step}
        if not new:
            return
        self.last.update(dict.fromkeys(new, step))
        record: Record = (step, time.time(), new)
        try:
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"step": step, "time": record[1], "metrics": new}) + "\n")
        except OSError as error:  # the training can go on without; whether checkpoints can be written is told there
            self.say(f"{self.file} cannot be written: {error.strerror}")
        self.tracker.metrics(record)


class Listener:
    """Takes what rank 0 reports.

    Args:
        file: ``metrics.jsonl`` of the run.
        tracker: Started.
        display: Shows progress.
    """

    def __init__(self, file: Path, tracker: Tracker, display: ProgressDisplay) -> None:
        self.display = display
        self.file = MetricsFile(file, tracker, self.say)

    def progress(self, progress: Progress) -> None:
        """Show progress."""
        self.display.show(progress)

    def say(self, text: str) -> None:
        """Tell the user."""
        self.display.console.print(text, style="yellow", soft_wrap=True)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics."""
        self.file.record(step, values)


class LocalReporter(Listener):
    """A `Listener` that also keeps checkpoints: the reporter of a training in this process.

    Args:
        file: As for `Listener`.
        tracker: As for `Listener`.
        display: As for `Listener`.
        checkpoints: Where they are kept.
    """

    def __init__(self, file: Path, tracker: Tracker, display: ProgressDisplay, checkpoints: CheckpointFolder) -> None:
        super().__init__(file, tracker, display)
        self.checkpoints = checkpoints

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Keep a checkpoint."""
        assert write is not None, "one process is rank 0"
        self.checkpoints.write(step, write)


def read_metrics(file: Path) -> Iterator[Record]:
    """Yield the records of a ``metrics.jsonl``; a line cut off by a crash is left out."""
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield record["step"], record["time"], record["metrics"]
