"""The training loop. It uses torch.distributed, not Ray, and reports to a `Reporter`."""

import copy
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalora.config import Config, TrainConfig
from metalora.errors import UserError
from metalora.files import seal
from metalora.group import Group, synchronised
from metalora.reading import gate
from metalora.train.callbacks import Callback, Callbacks, Plan, Step
from metalora.train.checkpoint import generator_states, restore_generators, seed_everything, write_state
from metalora.train.learner import Learner
from metalora.train.optimizers import OPTIMIZERS, restore
from metalora.train.reporter import Progress, Reporter, Write
from metalora.train.resume import State
from metalora.train.schedule import warmup_cosine
from metalora.train.selection import Selection

LOG_EVERY = 10


class Taken(NamedTuple):
    """A step that was taken and is not yet verified.

    Attributes:
        number: Number of the step, from 1.
        norm: Norm of its gradient, which is summed over all ranks.
        records: Losses (B,) and tasks (B,) of its micro-batches on this rank.
    """

    number: int
    norm: Tensor
    records: list[tuple[Tensor, Tensor]]


class Trainer:
    """Trains a learner, on one rank of a group. `metalora.build.build_trainer` builds a trainer from settings.

    Args:
        config: All settings; the loop reads the section ``train``, the batch size and ``validate_every``.
        learner: The learner to train.
        group: The group of ranks.
        reporter: Gets progress, metrics and checkpoints.
        callbacks: The callbacks that act around each step.

    Raises:
        UserError: a callback does not fit the learner, or the learner cannot be computed as the settings say.
    """

    def __init__(
        self, config: Config, learner: Learner, group: Group, reporter: Reporter, callbacks: Sequence[Callback] = ()
    ) -> None:
        self.config = config
        self.settings = config.train
        self.learner = learner
        self.group = group
        self.reporter = reporter
        self.step = 0
        self.loss_sum = torch.zeros((), device=group.device)
        self.loss_steps = 0
        self.started = False
        self.unverified: list[Taken] = []
        self.kept_step: int | None = None
        self.last: dict[str, Any] | None = None  # the learner's state after the last step, if that of another is tested
        self.steps_per_epoch = learner.steps_per_epoch
        self.total_steps = self.steps_per_epoch * self.settings.epochs
        self.callbacks = Callbacks(callbacks)
        self.callbacks.attach(learner, plan_of(self.settings, learner, group))
        self.selection = Selection(config)
        self.parameters = [one.parameter for one in learner.trainable()]
        self.method = OPTIMIZERS.make(self.settings.optimizer)
        self.optimizer = self.method.build(learner.trainable(), self.settings.lr, learner.scales())
        self.schedule = warmup_cosine(self.optimizer, self.settings.warmup_steps, self.total_steps)
        self.module = group.wrap(learner.module())

    def fit(self, resume: Path | None = None) -> None:
        """Train to the end, test, and write the results into the last checkpoint.

        Args:
            resume: Folder of a checkpoint to resume from; if it has the results already, and this training is no
                longer than the one that wrote it, nothing is done.

        Raises:
            UserError: the loss is not finite, or the checkpoint belongs to another training.
        """
        state = None if resume is None else self.learner.read(resume)
        if resume is not None and state is not None and self.learner.finished(resume, state):
            return
        self.learner.prepare(begins=state is None)
        if resume is not None and state is not None:
            self._restore(state, resume)
        while self.step < self.total_steps and not self.selection.over:
            self.train_epoch()
        self._take_best()
        self.callbacks.close()
        values, write = self.learner.test()
        self._tell({**self.selection.result(), **values})
        self._keep(write)

    def _take_best(self) -> None:
        """Load the weights of the best validation, if they are to be kept."""
        selected = self.selection.selected
        if selected is not None and "state" in selected:
            self.last = copy.deepcopy(self.learner.state())
            self.learner.load_state(selected["state"])

    def train_epoch(self) -> None:
        """Train to the end of the present epoch."""
        epoch, first = divmod(self.step, self.steps_per_epoch)
        clock = Clock(self.config.data.batch_size)
        batches = iter(self.learner.batches(epoch, first))
        for done in range(first + 1, self.steps_per_epoch + 1):
            self.train_step(itertools.islice(batches, self.settings.accumulate))
            if not self.started:
                self._report_start(clock)
            ends, due = done == self.steps_per_epoch, self._checkpoint_due()
            self._verify(leave=0 if ends else 1)
            if self.step % LOG_EVERY == 0 or ends or due:
                self._log(epoch, clock.rate(done - first))
            if ends or due:
                self.learner.agree()
            if ends and self._validation_due(epoch):
                self._validate(epoch)
            if due and not self.selection.over:  # the last step's checkpoint waits for the results
                self._keep()

    def _validate(self, epoch: int) -> None:
        values = self.learner.validate()
        self._tell(values)
        if self.selection.active:
            self.selection.see(epoch + 1, self.group.gather_objects(dict(values))[0], self.learner.state)

    def train_step(self, batches: Iterable[Any]) -> None:
        """Take one optimizer step on the given micro-batches."""
        records = []
        self.callbacks.begin(self.step)
        for index, batch in enumerate(batches):
            last = index + 1 == self.settings.accumulate
            with synchronised(self.module, now=last):
                seen = self.learner.losses(self.module, batch)
                losses = self.callbacks.losses(seen)
                loss = losses.mean() / self.settings.accumulate
                penalty = self.callbacks.penalty() if last else None
                (loss if penalty is None else loss + penalty).backward()
            records.append((losses.detach(), seen.domains))
        step = Step(self.step, self.step // self.steps_per_epoch, torch.cat([domains for _, domains in records]))
        self.callbacks.gradients(step)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm or math.inf)
        self.optimizer.step()
        self.schedule.step()
        self.callbacks.end(step)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss_sum += torch.stack([losses.mean() for losses, _ in records]).mean()
        self.loss_steps += 1
        self.unverified.append(Taken(self.step, norm, records))

    def _report_start(self, clock: "Clock") -> None:
        """Report how it is computed, and how long its first step took: it waits for decoders and compilers."""
        if self.group.device.type == "cuda":
            torch.cuda.synchronize(self.group.device)
        self.started = True
        self._tell({"train/first_step_seconds": time.monotonic() - clock.started, **self.learner.speedups})

    def _verify(self, leave: int = 0) -> None:
        """Stop if a step's gradient was not finite, looking at all steps but the last ``leave``.

        The norm is that of the summed gradient, so that all ranks stop at the same step. A step is looked at while
        the next one runs: reading its norm at once would leave the GPU idle.
        """
        while len(self.unverified) > leave:
            taken = self.unverified.pop(0)
            if bool(torch.isfinite(taken.norm)):
                continue
            bad = [domains[~torch.isfinite(losses).cpu()] for losses, domains in taken.records]
            met = sorted({int(d) for part in self.group.gather_objects(torch.cat(bad).tolist()) for d in part})
            names = ", ".join(self.learner.task_names[d] for d in met)
            where = f"loss of task {names}" if met else "gradient"
            kept = f"step {self.kept_step}" if self.kept_step is not None else "none yet"
            raise UserError(f"the {where} is not finite at step {taken.number}; last good checkpoint: {kept}")

    def _log(self, epoch: int, rate: float) -> None:
        loss = float(self.group.mean(self.loss_sum)) / self.loss_steps
        self.loss_sum.zero_()
        self.loss_steps = 0
        lr = float(self.schedule.get_last_lr()[0])
        values = {"train/loss": loss, "train/images_per_second": rate, "train/learning_rate": lr}
        self._tell({**values, **self.callbacks.metrics()})
        if self.group.first:
            self.reporter.progress(
                Progress("train", self.step, self.total_steps, epoch + 1, self.settings.epochs, loss, rate)
            )

    def _tell(self, values: Any) -> None:
        if self.group.first and values:
            self.reporter.metrics(self.step, values)

    def _checkpoint_due(self) -> bool:
        due = self.step % (self.settings.checkpoint_every or self.steps_per_epoch) == 0
        return due and self.step < self.total_steps

    def _validation_due(self, epoch: int) -> bool:
        every = self.config.evaluate.validate_every
        return every > 0 and (epoch + 1) % every == 0

    def _keep(self, write_more: Write | None = None) -> None:
        """Write a checkpoint, with the files of ``write_more`` beside the state; called on every rank."""
        self._verify()
        generators = self.group.gather_objects(generator_states(self.group.device))

        def write(folder: Path) -> None:
            write_state(folder, self._state(generators))
            if write_more is not None:
                write_more(folder)
            seal(folder)

        self.reporter.checkpoint(self.step, write if self.group.first else None)
        self.kept_step = self.step

    def _state(self, generators: list[Any]) -> dict[str, Any]:
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "generators": generators,
            "callbacks": self.callbacks.state_dict(),
            "selection": self.selection.selected,
            "sealed": True,  # older code wrote no checksums
            **(self.last or self.learner.state()),
        }

    def _restore(self, state: State, folder: Path) -> None:
        with gate(f"checkpoint {folder}"):
            if state["step"] > self.total_steps:
                raise UserError(f"step {state['step']} is beyond the last one of this training, {self.total_steps}")
            self.learner.load_state(state)
            restore(self.method, self.optimizer, self.schedule, state["optimizer"], state["step"])
            self.callbacks.load_state_dict(state.get("callbacks", {}))
            self.selection.selected = state.get("selection")
            self.step = self.kept_step = state["step"]
            if len(state["generators"]) == self.group.world:
                restore_generators(state["generators"][self.group.rank], self.group.device)
            else:  # another number of workers: no state to go on with, so a seed that no step before has used
                seed_everything(hash((self.settings.random_seed, self.step, self.group.rank)) % 2**63)


def plan_of(settings: TrainConfig, learner: Learner, group: Group) -> Plan:
    """Return what a training of a learner will be."""
    steps = learner.steps_per_epoch
    return Plan(settings.random_seed, steps * settings.epochs, steps, group)


class Clock:
    """Measures the rate of a training in images per second, from when the clock is made."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.started = time.monotonic()

    def rate(self, steps: int) -> float:
        """Return the mean rate after ``steps`` optimizer steps."""
        return steps * self.batch_size / max(1e-9, time.monotonic() - self.started)
