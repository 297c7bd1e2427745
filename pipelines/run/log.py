"""The log of a run or trial: ``metrics.jsonl``, tracker and terminal."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from metalora.files import atomic_file
from metalora.reading import check_form, gate, read_lines
from metalora.tracking.tracker import Record, Tracker
from metalora.train.checkpoint import CheckpointFolder
from metalora.train.reporter import Progress, Write


class RunLog:
    """Records the reports of a run or trial in ``metrics.jsonl``, with the tracker, and in the terminal.

    It is also the reporter of a training in this process. After a restart some steps are trained and reported again:
    records that are known already are not written twice.

    Args:
        file: ``metrics.jsonl`` of the run: one line per record, whatever happens to the tracker.
        tracker: The tracker, already started.
        say: Shows a message to the user, also if the file cannot be written.
        show: Shows the progress; None: the progress is not shown.
        checkpoints: Keeps the checkpoints of a training in this process.
        tell: Shows metrics that a person waits for; None: they are not shown.
    """

    def __init__(
        self,
        file: Path,
        tracker: Tracker,
        say: Callable[[str], None],
        show: Callable[[Progress], None] | None = None,
        checkpoints: CheckpointFolder | None = None,
        tell: Callable[[Mapping[str, float]], None] | None = None,
    ) -> None:
        self.file = file
        self.tracker = tracker
        self.say = say
        self.show = show
        self.checkpoints = checkpoints
        self.tell = tell
        self.last: dict[str, int] = {}
        for step, _, values in read_metrics(file):
            self.last.update(dict.fromkeys(values, step))
        if not file.exists():
            file.unlink(missing_ok=True)  # a link to what is not there: it would be made there
        else:
            with atomic_file(file) as own:  # what may be a link becomes a file; a last line may be cut off by a crash
                shutil.copyfile(file, own)
                with own.open("rb+") as lines:
                    if lines.seek(0, os.SEEK_END) and lines.seek(-1, os.SEEK_END) and lines.read(1) != b"\n":
                        lines.write(b"\n")

    def progress(self, progress: Progress) -> None:
        """Show the progress."""
        if self.show is not None:
            self.show(progress)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
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
        if self.tell is not None:
            self.tell(new)

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Keep a checkpoint of a training in this process."""
        assert write is not None, "one process is rank 0"
        assert self.checkpoints is not None, "the workers of Ray keep their checkpoints themselves"
        self.checkpoints.write(step, write)


class _Line(TypedDict):
    """The form of a line of ``metrics.jsonl``."""

    step: Annotated[int, Field(ge=0, lt=2**53)]
    time: Annotated[float, Field(ge=0, lt=2**40)]
    metrics: dict[str, float]


def read_metrics(file: Path) -> Iterator[Record]:
    """Yield the records of a ``metrics.jsonl``; a line cut off by a crash is left out.

    Raises:
        UserError: the file cannot be read, or a line is no record.
    """
    for number, line in enumerate(read_lines(file, f"metrics {file}"), 1):
        what = f"metrics {file}, line {number},"
        with gate(what):
            try:
                value = json.loads(line)  # not `parse_json`: a metric may be NaN
            except ValueError:
                continue
        record: _Line = check_form(value, _Line, what)
        if record["metrics"]:
            yield record["step"], record["time"], record["metrics"]
