"""What a person sees in the terminal while a training runs."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from metalora.train.reporter import Progress as State

LINE_SECONDS = 10.0


class ProgressDisplay:
    """A live bar on a terminal; elsewhere (a job's log) a line every ten seconds and at the end of the training.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.phase = ""
        self.printed = 0.0
        self.started = 0.0
        self.first_step = 0
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"), TimeRemainingColumn(),
            console=console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("starting", total=None, facts="")

    def __enter__(self) -> "ProgressDisplay":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def show(self, state: State) -> None:
        """Show a state."""
        if state.phase != self.phase or state.step < self.first_step:
            self.phase, self.first_step, self.started = state.phase, state.step, time.monotonic()
            if self.console.is_terminal:
                self.bar.reset(self.task, total=state.total, completed=state.step)
        if self.console.is_terminal:
            self.bar.update(
                self.task,
                description=_title(state),
                total=state.total,
                completed=state.step,
                facts=_facts(state),
            )
        elif time.monotonic() - self.printed > LINE_SECONDS or (state.epoch and state.step == state.total):
            self.printed = time.monotonic()
            self.console.print(f"{_title(state)}  {_facts(state)}{self._left(state)}", highlight=False)

    def _left(self, state: State) -> str:
        done = state.step - self.first_step
        if done <= 0 or state.step >= state.total:
            return ""
        seconds = (time.monotonic() - self.started) / done * (state.total - state.step)
        return f"  {int(seconds) // 60}:{int(seconds) % 60:02d} left"


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
