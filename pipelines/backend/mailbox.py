"""The mailbox through which workers and trials report to the driver.

It imports no torch: the process of the mailbox only keeps events.
"""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metalora.errors import one_line
from metalora.train.reporter import Progress

POLL_SECONDS = 0.3
LOST_SECONDS = 30  # between two looks at a cluster that does not answer


@dataclass(frozen=True)
class Metrics:
    """Metrics of an optimizer step."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Message:
    """A message to the user."""

    text: str


@dataclass(frozen=True)
class Failure:
    """The reason why a training cannot continue, not even after a restart."""

    text: str


@dataclass(frozen=True)
class Event:
    """One report of a run or trial.

    Attributes:
        sender: Name of the run or trial.
        content: The progress, metrics, message or failure that it reports.
    """

    sender: str
    content: Progress | Metrics | Message | Failure


@ray.remote(num_cpus=0)
class _Box:
    """The process that keeps the events until they are read; a failure it keeps for good."""

    def __init__(self) -> None:
        self.unread: dict[str | None, list[Event]] = {None: []}
        self.failures: dict[str, str] = {}

    def post(self, event: Event) -> None:
        for reader, events in self.unread.items():
            if reader in (None, event.sender):
                events.append(event)
        if isinstance(event.content, Failure):
            self.failures.setdefault(event.sender, event.content.text)

    def pull(self, reader: str | None) -> list[Event]:
        events, self.unread[reader] = self.unread.get(reader, []), []
        return events

    def close(self, reader: str) -> None:
        self.unread.pop(reader, None)

    def failure(self, sender: str) -> str | None:
        return self.failures.get(sender)


class Mailbox:
    """Takes events from any process of the cluster, for the driver, whose process makes it.

    Other processes get it pickled; it stays the same mailbox. If a trial trains on several workers, they post to the
    campaign's mailbox under the trial's name, and the trial reads their events there.
    """

    def __init__(self) -> None:
        # On the driver's node, where it stays whatever happens to the others.
        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.box: Any = _Box.options(scheduling_strategy=node).remote()  # type: ignore[attr-defined]

    def post(self, event: Event) -> Any:
        """Post an event without waiting; `ray.get` of the result waits until it is in the mailbox."""
        return self.box.post.remote(event)

    def pull(self, reader: str | None = None) -> list[Event]:
        """Return the events that a reader has not read yet.

        Args:
            reader: Name of a sender, whose events after the first call are read; None: the driver, which reads all
                events from the beginning.
        """
        events: list[Event] = ray.get(self.box.pull.remote(reader))
        return events

    def close(self, reader: str) -> None:
        """Stop keeping events for a reader."""
        self.box.close.remote(reader)

    def failure(self, sender: str) -> str | None:
        """Return the first failure that a run or trial has posted; None if there is none."""
        text: str | None = ray.get(self.box.failure.remote(sender))
        return text


class Courier:
    """Carries the events of a mailbox to a listener, in a thread of its own, while the context is open.

    An event or a job that fails is only reported: neither a full disk nor a lost server ends a run.

    Args:
        mailbox: The mailbox.
        listen: Called with each event.
        say: Called with a message for each failure.
        reader: As for `Mailbox.pull`.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        listen: Callable[[Event], None],
        say: Callable[[str], None],
        reader: str | None = None,
    ) -> None:
        self.mailbox = mailbox
        self.listen = listen
        self.say = say
        self.reader = reader
        self.jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Courier":
        if self.reader is not None:
            self.mailbox.pull(self.reader)  # from now on it is read
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.done.set()
        self.thread.join()
        if self.reader is not None:
            self.mailbox.close(self.reader)

    def later(self, job: Callable[[], None]) -> None:
        """Run a job in the thread, after the events that have been posted so far."""
        self.jobs.put(job)

    def round(self) -> None:
        """Carry all events and do all jobs, each job after the events that were posted before it."""
        self._carry()
        with suppress(queue.Empty):
            while True:
                job = self.jobs.get_nowait()
                self._carry()
                self._try(job)

    def _run(self) -> None:
        last = False
        while not last:
            last = self.done.wait(POLL_SECONDS)
            try:
                self.round()
            except ray.exceptions.RayError as error:  # the cluster is gone, and whoever drives it ends the run
                if not last:
                    self.say(f"the cluster does not answer: {type(error).__name__}")
                    last = self.done.wait(LOST_SECONDS)

    def _carry(self) -> None:
        for event in self.mailbox.pull(self.reader):
            self._try(partial(self.listen, event))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self.say(f"a report could not be recorded: {type(error).__name__}: {one_line(error)}")
