"""The base class of optimizers, which turn the gradients of the trained parameters into updates."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metalora.errors import UserError
from metalora.models.model import Trainable
from metalora.reading import short
from metalora.registry import Registry


class OptimizerMethod(ABC):
    """A method that turns gradients into updates; a frozen dataclass of its options.

    >>> from metalora.train.optimizers import OPTIMIZERS
    >>> OPTIMIZERS.make({"name": "adamw", "weight_decay": 0.05}).weight_decay
    0.05

    Attributes:
        name: The name that the optimizer is registered by.
    """

    name: str

    @abstractmethod
    def build(self, trained: Iterable[Trainable], lr: float, scales: Mapping[str, float]) -> Optimizer:
        """Build the optimizer of a training.

        Args:
            trained: The trained parameters.
            lr: Peak learning rate.
            scales: Factors of the rate by part ("mapping"); other parts have the factor 1.
        """

    @abstractmethod
    def check_state(self, state: Mapping[str, Any], parameter: Tensor, name: str, step: int) -> None:
        """Check the state of one parameter in a checkpoint.

        Args:
            state: The state.
            parameter: The parameter.
            name: Name of the state in error messages.
            step: The optimizer steps taken.

        Raises:
            UserError: this optimizer has no such state for the parameter.
        """


OPTIMIZERS: Registry[OptimizerMethod] = Registry("optimizer", "optimizer")


def restore(
    method: OptimizerMethod, optimizer: Optimizer, schedule: LambdaLR, state: Mapping[str, Any], step: int
) -> None:
    """Restore an optimizer and its schedule to where they were after a step.

    Args:
        method: The method that built the optimizer.
        optimizer: A fresh optimizer of the same parameters.
        schedule: The schedule of the optimizer.
        state: The optimizer's ``state_dict``; only its moments are used.
        step: The optimizer steps taken.

    Raises:
        UserError: the moments belong to other parameters.
    """
    own = optimizer.state_dict()
    sizes = [len(group["params"]) for group in own["param_groups"]]
    met = [len(group["params"]) for group in state["param_groups"]]
    if met != sizes:
        raise UserError(f"the optimizer's groups have {short(met)} parameters, not {short(sizes)}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, met_moments in state["state"].items():
        if index not in range(len(parameters)):
            raise UserError(f"the optimizer has no parameter {short(index)}")
        method.check_state(met_moments, parameters[index], f"optimizer.state.{index}", step)
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    # clones, since a stranger's tensor may be a view that cannot be written to
    moments = {index: {name: t.clone() for name, t in one.items()} for index, one in state["state"].items()}
    groups = [{**group, "lr": rate} for group, rate in zip(own["param_groups"], rates, strict=True)]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    there = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    schedule.load_state_dict({**schedule.state_dict(), **there})
