"""The output in the terminal while a training runs."""

import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from metalora.redact import redact
from metalora.report.measures import warnings_of
from metalora.report.tables import accuracy_table, measures_table
from metalora.train.reporter import Progress as State
from pipelines.verbosity import is_quiet

LINE_SECONDS = 10.0


class Output:
    """A text stream that never ends a training with an error.

    Characters that its encoding lacks are written as escapes, and secrets as ``***``. If the stream breaks (a pipe
    whose reader has ended, a full disk, a closed terminal), nothing more is written.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.broken = False

    def write(self, text: str) -> int:
        """Write a text to the stream."""
        if not self.broken:
            encoding = self.stream.encoding or "utf-8"
            plain = redact(text).encode(encoding, "backslashreplace").decode(encoding)
            self._try(lambda: self.stream.write(plain))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        if not self.broken:
            self._try(self.stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (OSError, ValueError):  # ValueError: it is closed
            self.broken = True
            with suppress(OSError, ValueError):  # else Python itself fails on what is left to flush
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def terminal() -> Console:
    """Make the console that a command writes to; texts are shown literally, since names from data are no markup."""
    output: Any = Output(sys.stdout or io.StringIO())  # a command may be started with its output closed
    return Console(file=output, markup=False, emoji=False, highlight=False)


def inform(console: Console, text: str) -> None:
    """Print a line on how a command gets on, which ``--quiet`` leaves out."""
    if not is_quiet():
        console.print(text, soft_wrap=True)


def warn(console: Console, text: str) -> None:
    """Print a warning, also with ``--quiet``."""
    console.print(text, style="yellow", soft_wrap=True)


def show_report(console: Console, report: Mapping[str, Any]) -> None:
    """Print the accuracies of ``knn.json``, by task and by measure, and what they warn of."""
    console.print(accuracy_table(report["original"], report["adapted"], report["format"]))
    console.print(measures_table(report))
    for line in warnings_of(report):
        warn(console, f"warning: {line}")


@contextmanager
def only_tells(tell: Callable[[Exception], None]) -> Iterator[None]:
    """Report an error in the block and continue; for drawing or sending results that the run's folder has.

    Args:
        tell: Called with the error.
    """
    try:
        yield
    except Exception as error:
        tell(error)


class ProgressDisplay:
    """A live bar on a terminal; elsewhere (a job's log) one line every ten seconds and at the end of the training.

    With ``--quiet`` there is none; messages are still shown.

    Args:
        console: The console to write to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.phase = ""
        self.epoch = 0
        self.printed = -math.inf
        self.began: dict[str, tuple[float, int]] = {}  # phase: when, at which step
        self.bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(),
            TextColumn("{task.fields[facts]}", markup=False), console=console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("starting", total=None, facts="")

    def __enter__(self) -> "ProgressDisplay":
        if self.console.is_terminal and not is_quiet():
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def say(self, text: str) -> None:
        """Show a message to the user."""
        warn(self.console, text)

    def tell(self, metrics: Mapping[str, float]) -> None:
        """Print what a person waits for, each in a line of its own: how it is computed, validations, what was kept."""
        if "train/first_step_seconds" in metrics:
            inform(self.console, _computed(metrics))
        if any(name.startswith("val/") for name in metrics):
            self._validated(metrics)
        if "best/epoch" in metrics:
            inform(self.console, _best(metrics))

    def _validated(self, metrics: Mapping[str, float]) -> None:
        knn = [name for name in metrics if re.fullmatch(r"val/knn\d+", name)]
        parts = [f"k-NN, K = {name.removeprefix('val/knn')}: {metrics[name]:.1%}" for name in knn]
        if "val/accuracy" in metrics:
            parts.append(f"classifier {metrics['val/accuracy']:.1%}, loss {metrics['val/loss']:.4f}")
        inform(self.console, f"epoch {self.epoch} validated  {'  '.join(parts)}")

    def show(self, state: State) -> None:
        """Show a state of the progress."""
        self.epoch = state.epoch or self.epoch
        now = time.monotonic()
        again = state.phase == "train" or state.phase == self.phase  # training goes on after a validation
        if not (again and state.phase in self.began and state.step >= self.began[state.phase][1]):
            self.began[state.phase] = (now, state.step)
        self.phase = state.phase
        facts = f"{_facts(state)}{self._left(state, now)}"
        if self.console.is_terminal:
            self.bar.update(self.task, description=_title(state), total=state.total, completed=state.step, facts=facts)
        elif now - self.printed > LINE_SECONDS or (state.epoch and state.step == state.total):
            self.printed = now
            inform(self.console, f"{_title(state)}  {facts}")

    def _left(self, state: State, now: float) -> str:
        began, first = self.began[state.phase]
        if state.step == first or state.step >= state.total:
            return ""
        seconds = int((now - began) / (state.step - first) * (state.total - state.step))
        return f"  {seconds // 60}:{seconds % 60:02d} left"


def _best(metrics: Mapping[str, float]) -> str:
    """Return which validation was the best, whether its weights are kept, and whether the training ended early."""
    name, value = next((n.removeprefix("best/"), v) for n, v in metrics.items() if n.startswith("best/val/"))
    shown = f"{value:.4f}" if name.endswith("/loss") else f"{value:.1%}"
    waited = metrics.get("best/waited")
    ended = (
        ""
        if waited is None
        else f"ended early, after {waited:.0f} validation{'s' * (waited != 1)} without a better {name}; "
    )
    kept = "keeping the weights of epoch" if "best/kept" in metrics else "keeping the last weights; the best epoch is"
    return f"best      {ended}{kept} {metrics['best/epoch']:.0f} ({name} {shown})"


def _computed(metrics: Mapping[str, float]) -> str:
    """Return how a training is computed, from the metrics of its first step, in a line."""
    fused = metrics.get("train/fused_convolutions", 0)
    parts = [
        "on a GPU" if metrics.get("train/gpu") else "on a CPU",
        "bfloat16" if metrics.get("train/bfloat16") else "float32",
        f"{fused:.0f} fused convolutions" if fused else "plain kernels",
        *(["CUDA graphs"] if metrics.get("train/cuda_graph") else []),
    ]
    return f"training  {', '.join(parts)}; the first step took {metrics['train/first_step_seconds']:.1f} s"


def _title(state: State) -> str:
    return f"epoch {state.epoch}/{state.epochs}" if state.epoch else state.phase


def _facts(state: State) -> str:
    unit = "step" if state.epoch else "image"
    parts = [f"{unit} {state.step}/{state.total}"]
    if state.loss is not None:
        parts.append(f"loss {state.loss:.4f}")
    if state.rate is not None:
        parts.append(f"{state.rate:,.0f} images/s")
    return "  ".join(parts)
