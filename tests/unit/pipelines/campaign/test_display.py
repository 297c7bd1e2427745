"""What the terminal shows of a campaign."""

import io

from rich.console import Console

from metalora.train.reporter import Progress
from pipelines.campaign.display import CampaignDisplay
from pipelines.campaign.trials import TrialRecord, TrialSpec


def record(number, status="running", value=None, error=None):
    result = {} if value is None else {"val/knn10": value, "parameters": 1234.0, "epoch": 3.0}
    return TrialRecord(TrialSpec.of(number, {"format": "tr", "rank": 2}, 0), status, error, result=result)


def display(terminal=False, objective="val/knn10", **settings):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140)
    return CampaignDisplay(console, "mine", objective, settings.get("total", 5), settings.get("seconds"))


def text(shown):
    return shown.console.file.getvalue()


def test_a_log_gets_a_line_for_every_trial_that_ends():
    shown = display()
    records = {"a": record(0), "b": record(1)}
    shown.update(records)
    records |= {"a": record(0, "finished", 0.61), "b": record(1, "failed", error="Traceback\n  no room\n")}
    shown.update(records)
    shown.update(records)
    assert text(shown).splitlines() == ["a: finished, val/knn10 61.0% after epoch 3", "b: failed, no room"]


def test_the_summary_counts_and_names_the_highest_value_but_no_winner():
    shown = display()
    shown.update({"a": record(0, "finished", 0.5), "b": record(1, "stopped", 0.7), "c": record(2), "d": record(3)})
    assert shown.summary().startswith(
        "2 running, 1 finished, 1 stopped of 5 trials | highest val/knn10 70.0%: 001-tr-r2-s0"
    )
    assert "left" in shown.summary()


def test_the_best_of_a_loss_is_the_lowest():
    shown = display(objective="val/loss")
    low, high = (TrialRecord(TrialSpec.of(n, {}, 0), "finished", result={"val/loss": v}) for n, v in ((0, 0.1), (1, 2)))
    shown.update({"low": low, "high": high})
    assert shown.best() is low
    assert "| lowest val/loss 0.1: 000" in shown.summary()


def test_the_time_left_comes_from_this_part_and_the_limit():
    shown = display(seconds=60.0)
    assert "about 0:59 left" in shown.summary() or "about 1:00 left" in shown.summary()
    shown = display(total=2)
    shown.begin({"a": record(0, "finished", 0.5)})
    assert "left" not in shown.summary(), "nothing has ended in this part"


def test_a_terminal_gets_one_table():
    shown = display(terminal=True)
    with shown:
        shown.update({f"{n}": record(n, "finished", n / 100) for n in range(20)} | {"run": record(20)})
        shown.progress("020-tr-r2-s0", Progress("train", 3, 30, 2, 8))
        console = Console(file=io.StringIO(), width=140)
        console.print(shown.table())
    lines = console.file.getvalue().splitlines()
    assert "epoch 2/8" in lines[4]
    assert "format=tr rank=2" in lines[4]
    assert "19.0%" in lines[5]
    assert "... and 9 more" in "".join(lines)
