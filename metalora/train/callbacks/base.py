"""The base class of callbacks, which act around each optimizer step.

Shapes: B images of a micro-batch on this rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from metalora.errors import UserError
from metalora.group import Group
from metalora.registry import Registry

if TYPE_CHECKING:
    from metalora.train.learner import Learner, Seen


@dataclass(frozen=True)
class Plan:
    """The facts of a training before its first step.

    Attributes:
        random_seed: Random choices must depend on this number and the step only.
        steps: Optimizer steps of the whole training.
        steps_per_epoch: Optimizer steps per epoch.
        group: The ranks.
    """

    random_seed: int
    steps: int
    steps_per_epoch: int
    group: Group


@dataclass(frozen=True)
class Step:
    """The optimizer step that is being taken.

    Attributes:
        index: Number of the step, from 0.
        epoch: Number of its epoch, from 0.
        tasks: The task of each of its images on this rank, on the CPU.
    """

    index: int
    epoch: int
    tasks: Tensor


class Callback:
    """Acts around each optimizer step: a dataclass of its options, which may keep a state. Every hook is optional.

    In a step no parameter may leave the graph or change its shape: write gates, masks and schedules into buffers, in
    place, so that DDP and captured graphs stay valid. Make decisions from numbers that are equal on all ranks.

    >>> class Halve(Callback):
    ...     "Halve every gradient."
    ...
    ...     def gradients(self, step):
    ...         for one in self.learner.trainable():
    ...             one.parameter.grad.mul_(0.5)

    With ``@CALLBACKS.register("halve")`` above it, settings name it: ``callbacks: [halve]`` in YAML, or, with an option
    ``factor``, ``callbacks: [{name: halve, factor: 0.1}]``; ``--callbacks halve --callbacks.halve.factor 0.1``.

    Attributes:
        name: The name that the callback is registered by.
        graphable: Whether steps with this callback can be replayed as CUDA graphs.
        learner: The learner that is trained; set by `attach`.
        plan: The facts of the training; set by `attach`.
    """

    name: str
    graphable: ClassVar[bool] = True

    def attach(self, learner: "Learner", plan: Plan) -> None:
        """Get to know the training, before its first step; also called if the training is only checked.

        Raises:
            UserError: the callback does not fit the learner.
        """
        self.learner, self.plan = learner, plan

    def begin(self, index: int) -> None:
        """Act before the forward of step ``index``, from 0: draw random numbers, write buffers."""

    def losses(self, seen: "Seen") -> Tensor:
        """Return the loss of each image, (B,): change, weight or replace the objective's loss, ``seen.losses``."""
        return seen.losses

    def penalty(self) -> Tensor | None:
        """Return a penalty, which is added once to the loss of a step, outside any captured graph; None for none."""
        return None

    def gradients(self, step: Step) -> None:
        """Read, change or drop (``grad = None``) the step's gradients, after they are summed and before clipping."""

    def end(self, step: Step) -> None:
        """Act after the optimizer's update; change values only in place."""

    def metrics(self) -> Mapping[str, float]:
        """Return numbers for the log, by name; equal on all ranks."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values for the checkpoint, so that a resumed training continues as before."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`."""

    def close(self) -> None:
        """Act after the last step and before the test; only here shapes may change."""


class Callbacks:
    """The callbacks of a training, in the order of the settings.

    Args:
        members: The callbacks, each of another name.
    """

    def __init__(self, members: Sequence[Callback] = ()) -> None:
        self.members = tuple(members)

    def attach(self, learner: "Learner", plan: Plan) -> None:
        """Attach every callback. See `Callback.attach`."""
        for member in self.members:
            member.attach(learner, plan)

    def begin(self, index: int) -> None:
        """Begin a step in every callback. See `Callback.begin`."""
        for member in self.members:
            member.begin(index)

    def losses(self, seen: "Seen") -> Tensor:
        """Return the losses after every callback; each gets the losses of the one before. See `Callback.losses`."""
        for member in self.members:
            seen = seen._replace(losses=member.losses(seen))
        return seen.losses

    def penalty(self) -> Tensor | None:
        """Return the sum of the penalties; None if there are none. See `Callback.penalty`."""
        found = [penalty for member in self.members if (penalty := member.penalty()) is not None]
        return torch.stack(found).sum() if found else None

    def gradients(self, step: Step) -> None:
        """Let every callback change the gradients. See `Callback.gradients`."""
        for member in self.members:
            member.gradients(step)

    def end(self, step: Step) -> None:
        """End a step in every callback. See `Callback.end`."""
        for member in self.members:
            member.end(step)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of all callbacks, under ``callbacks/NAME/...``."""
        return {f"callbacks/{m.name}/{name}": value for m in self.members for name, value in m.metrics().items()}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the states of the callbacks that have one, by name."""
        return {member.name: state for member in self.members if (state := member.state_dict())}

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Load the states of the callbacks.

        Raises:
            UserError: the state of a callback is missing, or a state belongs to no callback.
        """
        wanted = self.state_dict().keys()
        if wanted != states.keys():
            raise UserError(f"callbacks: it holds the states of {sorted(states)}, not of {sorted(wanted)}")
        for member in self.members:
            if member.name in states:
                member.load_state_dict(states[member.name])

    def close(self) -> None:
        """Close every callback. See `Callback.close`."""
        for member in self.members:
            member.close()


CALLBACKS: Registry[Callback] = Registry("callback", "callbacks", frozen=False, several=True)
