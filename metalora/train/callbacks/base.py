"""What a callback is: something that acts around each optimizer step.

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
    """What a training will be.

    Attributes:
        random_seed: Random choices are functions of this number and the step.
        steps: Optimizer steps of the whole training.
        steps_per_epoch: Of an epoch.
        group: The ranks.
    """

    random_seed: int
    steps: int
    steps_per_epoch: int
    group: Group


@dataclass(frozen=True)
class Step:
    """An optimizer step that is under way.

    Attributes:
        index: From 0.
        epoch: From 0.
        tasks: The tasks of its images on this rank, one for each image, on the CPU.
    """

    index: int
    epoch: int
    tasks: Tensor


class Callback:
    """Something that acts around each step: a dataclass of its options, which may keep a state. All hooks may stay out.

    No parameter may leave the graph in a step, and none may change its shape: gates, masks and schedules are buffers
    that are written in place, so that DDP and captured graphs stay true. A decision is made from numbers that are equal
    on all ranks.

    >>> class Halve(Callback):
    ...     "Halve every gradient."
    ...
    ...     def gradients(self, step):
    ...         for one in self.learner.trainable():
    ...             one.parameter.grad.mul_(0.5)

    Attributes:
        name: The name that it is registered by.
        graphable: Whether its steps can be replayed as CUDA graphs.
        learner: What is trained; set by `attach`.
        plan: What the training will be; set by `attach`.
    """

    name: str
    graphable: ClassVar[bool] = True

    def attach(self, learner: "Learner", plan: Plan) -> None:
        """Get to know the training, before its first step; also where it is only checked whether it could be.

        Raises:
            UserError: the callback does not go with what is trained.
        """
        self.learner, self.plan = learner, plan

    def begin(self, index: int) -> None:
        """Act before the forward of a step, from 0: draw, write buffers."""

    def losses(self, seen: "Seen") -> Tensor:
        """Return the loss of each image, (B,), given that of the objective: add to it, weigh or replace it."""
        return seen.losses

    def penalty(self) -> Tensor | None:
        """Return what is added to the loss of a step, once; outside any captured graph."""
        return None

    def gradients(self, step: Step) -> None:
        """Read, change or drop (``grad = None``) the step's gradients: after they are summed, before clipping."""

    def end(self, step: Step) -> None:
        """Act after the optimizer's update, in place."""

    def metrics(self) -> Mapping[str, float]:
        """Return numbers for the log, by name; equal on all ranks."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values for the checkpoint, so that a resumed training goes on as before."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` returned."""

    def close(self) -> None:
        """Act after the last step, before the test: this is where shapes may change."""


class Callbacks:
    """The callbacks of a training, in the order of the settings.

    Args:
        members: The callbacks, each of another name.
    """

    def __init__(self, members: Sequence[Callback] = ()) -> None:
        self.members = tuple(members)

    def attach(self, learner: "Learner", plan: Plan) -> None:
        """See `Callback.attach`."""
        for member in self.members:
            member.attach(learner, plan)

    def begin(self, index: int) -> None:
        """See `Callback.begin`."""
        for member in self.members:
            member.begin(index)

    def losses(self, seen: "Seen") -> Tensor:
        """See `Callback.losses`; each gets what the one before returned."""
        for member in self.members:
            seen = seen._replace(losses=member.losses(seen))
        return seen.losses

    def penalty(self) -> Tensor | None:
        """Return the sum of the penalties; None if there are none. See `Callback.penalty`."""
        found = [penalty for member in self.members if (penalty := member.penalty()) is not None]
        return torch.stack(found).sum() if found else None

    def gradients(self, step: Step) -> None:
        """See `Callback.gradients`."""
        for member in self.members:
            member.gradients(step)

    def end(self, step: Step) -> None:
        """See `Callback.end`."""
        for member in self.members:
            member.end(step)

    def metrics(self) -> dict[str, float]:
        """Return the numbers of all, as ``callbacks/NAME/...``."""
        return {f"callbacks/{m.name}/{name}": value for m in self.members for name, value in m.metrics().items()}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the states of those that have one, by name."""
        return {member.name: state for member in self.members if (state := member.state_dict())}

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the states.

        Raises:
            UserError: the state of a callback is missing, or there is one of another callback.
        """
        wanted = self.state_dict().keys()
        if wanted != states.keys():
            raise UserError(f"callbacks: it holds the states of {sorted(states)}, not of {sorted(wanted)}")
        for member in self.members:
            if member.name in states:
                member.load_state_dict(states[member.name])

    def close(self) -> None:
        """See `Callback.close`."""
        for member in self.members:
            member.close()


CALLBACKS: Registry[Callback] = Registry("callback", "callbacks", frozen=False)
