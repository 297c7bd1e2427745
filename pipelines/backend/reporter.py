"""The worker's end of a mailbox: a reporter that posts events."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray

from metalora.train.checkpoint import checkpoint_failure
from metalora.train.reporter import Progress, Write
from pipelines.backend.mailbox import Event, Failure, Mailbox, Message, Metrics

Keep = Callable[[int, Path | None], None]


def keep_nothing(step: int, folder: Path | None) -> None:
    """Keep no checkpoint, since nothing is trained."""


class MailReporter:
    """The reporter of a worker of Ray Train, or of a trial.

    Args:
        mailbox: The driver's mailbox.
        name: Name of the run or trial that reports.
        keep: Called with the step and the folder of each checkpoint; the folder is removed afterwards, and is None on
            ranks other than 0.
        also: Called, in this process, with each posted event.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        name: str,
        keep: Keep = keep_nothing,
        also: Callable[[Event], None] | None = None,
    ) -> None:
        self.mailbox = mailbox
        self.name = name
        self.keep = keep
        self.also = also
        self.posted: Any = None

    def progress(self, progress: Progress) -> None:
        """Post the progress."""
        self._post(progress)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Post metrics of an optimizer step."""
        self._post(Metrics(step, dict(values)))

    def say(self, text: str) -> None:
        """Post a message to the user."""
        self._post(Message(text))

    def fail(self, text: str) -> None:
        """Post why the training cannot continue, and wait until it is in the mailbox: this process may end now."""
        self._post(Failure(text))
        ray.get(self.posted)

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Keep a checkpoint.

        All earlier events are in the mailbox by then: a training that is resumed from here does not post them again.

        Raises:
            UserError: the checkpoint could not be written (disk full, say).
        """
        if write is None:
            self.keep(step, None)
            return
        if self.posted is not None:
            ray.get(self.posted)  # a process's calls of an actor are done in their order
        with checkpoint_failure(step), tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            self.keep(step, Path(folder))

    def _post(self, content: Progress | Metrics | Message | Failure) -> None:
        event = Event(self.name, content)
        if self.also is not None:
            self.also(event)
        self.posted = self.mailbox.post(event)
