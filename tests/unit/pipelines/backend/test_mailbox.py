"""What is posted is heard once by everyone whom it concerns, in order, whatever fails meanwhile."""

import threading
from pathlib import Path

import pytest
import ray

from metalora.errors import UserError
from metalora.train.reporter import Progress
from pipelines.backend import mailbox as module
from pipelines.backend.mailbox import Courier, Event, Failure, Message, Metrics
from pipelines.backend.reporter import MailReporter

PROGRESS = Progress("train", 1, 2)


def test_the_driver_reads_everything_and_a_trial_what_it_says_itself(mailbox):
    first = Event("a", Message("early"))
    mailbox.post(first)
    assert mailbox.pull("a") == []  # from now on it is read
    events = [Event("a", PROGRESS), Event("b", Metrics(1, {"x": 1.0})), Event("a", Message("said"))]
    for event in events:
        mailbox.post(event)
    assert mailbox.pull("a") == [events[0], events[2]]
    assert mailbox.pull("a") == []
    assert mailbox.pull() == [first, *events]
    mailbox.close("a")
    mailbox.post(events[0])
    assert mailbox.pull() == [events[0]]


def test_the_first_failure_of_each_is_kept(mailbox):
    reporter = MailReporter(mailbox, "a")
    reporter.fail("first")
    reporter.fail("second")
    assert [mailbox.failure(name) for name in "ab"] == ["first", None]
    assert mailbox.pull() == [Event("a", Failure("first")), Event("a", Failure("second"))]
    assert mailbox.failure("a") == "first"


def test_a_reporter_posts_and_tells_its_own_process(mailbox):
    here = []
    reporter = MailReporter(mailbox, "a", also=here.append)
    reporter.progress(PROGRESS)
    reporter.metrics(3, {"x": 1.0})
    reporter.say("hello")
    assert here == mailbox.pull() == [
        Event("a", PROGRESS), Event("a", Metrics(3, {"x": 1.0})), Event("a", Message("hello"))
    ]  # fmt: skip


def test_a_checkpoint_is_kept_once_what_came_before_it_lies_in_the_mailbox(mailbox, monkeypatch):
    order = []

    def keep(step: int, folder: Path | None) -> None:
        order.append((step, folder and sorted(path.name for path in folder.iterdir())))

    reporter = MailReporter(mailbox, "a", keep)
    reporter.checkpoint(0, lambda folder: (folder / "state.pt").touch())
    reporter.metrics(1, {"x": 1.0})
    monkeypatch.setattr("ray.get", lambda posted: order.append("waited"))
    reporter.checkpoint(1, lambda folder: (folder / "state.pt").touch())
    reporter.checkpoint(2, None)
    assert order == [(0, ["state.pt"]), "waited", (1, ["state.pt"]), (2, None)]


def test_a_checkpoint_that_cannot_be_written_is_one_line(mailbox):
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"the checkpoint of step 7 could not be written: .*No space left"):
        MailReporter(mailbox, "a").checkpoint(7, fail)


def test_a_courier_carries_in_order_and_to_the_end(mailbox, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    heard, said, seen = [], [], threading.Event()

    def listen(event: Event) -> None:
        if event.content == Message("bad"):
            raise OSError("the disk is full")
        heard.append(event.content)
        seen.set()

    with Courier(mailbox, listen, said.append) as courier:
        mailbox.post(Event("a", Message("one")))
        assert seen.wait(10)
        mailbox.post(Event("a", Message("bad")))
        mailbox.post(Event("a", Message("two")))
        courier.later(lambda: heard.append("job"))
        courier.later(lambda: 1 / 0)
        courier.later(lambda: heard.append("last"))
    assert heard == [Message("one"), Message("two"), "job", "last"]
    assert said == [
        "a report could not be recorded: OSError: the disk is full",
        "a report could not be recorded: ZeroDivisionError: division by zero",
    ]


def test_a_courier_of_one_sender_hears_only_that_one(mailbox):
    heard = []
    mailbox.post(Event("a", Message("before")))
    with Courier(mailbox, heard.append, print, reader="a"):
        mailbox.post(Event("b", Message("other")))
        mailbox.post(Event("a", Message("own")))
    assert heard == [Event("a", Message("own"))]
    assert len(mailbox.pull()) == 3


def test_a_cluster_that_is_gone_is_told_once_and_ends_with_the_run(mailbox, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    said, told = [], threading.Event()

    def lost(reader: str | None) -> list[Event]:
        raise ray.exceptions.RayActorError()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    with Courier(mailbox, print, say):
        monkeypatch.setattr(mailbox, "pull", lost)
        assert told.wait(10)
    assert said == ["the cluster does not answer: RayActorError"]
