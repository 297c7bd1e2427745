"""What workers and trials report, on its way to the driver.

It imports no torch: the process of the mailbox has only events to keep.
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
    """Why going on is useless, also for a restart."""

    text: str


@dataclass(frozen=True)
class Event:
    """What a run or trial reports.

    Attributes:
        sender: The run's or the trial's name.
        content: What it says.
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
    """Joins those who report, in any process of the cluster, with the driver, in whose process it is made.

    It goes to the others as it is, pickled. There it stays one mailbox: a trial that trains on several workers has them
    post to that of the campaign, under the trial's name, and reads there what they say.
    """

    def __init__(self) -> None:
        # On the driver's node, where it stays whatever happens to the others.
        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.box: Any = _Box.options(scheduling_strategy=node).remote()  # type: ignore[attr-defined]

    def post(self, event: Event) -> Any:
        """Leave an event, without waiting; return what `ray.get` takes to wait until it lies there."""
        return self.box.post.remote(event)

    def pull(self, reader: str | None = None) -> list[Event]:
        """Take the events that this reader has not read yet.

        Args:
            reader: Reads what the sender of this name posts after the reader's first call; None: the driver, who reads
                everything from the beginning on.
        """
        events: list[Event] = ray.get(self.box.pull.remote(reader))
        return events

    def close(self, reader: str) -> None:
        """Keep nothing for a reader any more."""
        self.box.close.remote(reader)

    def failure(self, sender: str) -> str | None:
        """Return the first failure that a run or trial has posted."""
        text: str | None = ray.get(self.box.failure.remote(sender))
        return text


class Courier:
    """Carries a mailbox's events to who listens, in a thread of its own, for as long as the context is open.

    What fails of an event or a job is told and costs nothing else: neither a full disk nor a server ends a run.

    Args:
        mailbox: The mailbox.
        listen: Takes each event.
        say: Told what could not be done.
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
        """Have something done in the thread, after the events that are posted by then."""
        self.jobs.put(job)

    def round(self) -> None:
        """Carry what there is and do the jobs, each after what was posted before it."""
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
            self.say(f"what was reported could not be recorded: {type(error).__name__}: {one_line(error)}")
