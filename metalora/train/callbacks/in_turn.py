"""Tasks that are left out in turn."""

from metalora.errors import UserError
from metalora.train.callbacks.base import CALLBACKS, Callback, Plan, Step
from metalora.train.learner import Learner


@CALLBACKS.register("in_turn")
class InTurn(Callback):
    """Each epoch leaves another task out: its steps train the mapping net alone, the others everything else.

    In epoch e the task is number e mod T of the T trained ones. The steps are of one task each (``objective``:
    ``episodic`` with ``tasks: one``).
    """

    def attach(self, learner: Learner, plan: Plan) -> None:
        """Find the tasks. See `Callback.attach`."""
        super().attach(learner, plan)
        self.tasks = learner.tasks
        generated = any(one.part == "mapping" for one in learner.trainable())
        if not generated or len(self.tasks) < 2:
            raise UserError("callback in_turn needs a format with generated seeds, and two tasks or more")
        if not learner.one_task:
            raise UserError("callback in_turn needs steps of one task each: --objective episodic --objective.tasks one")

    def gradients(self, step: Step) -> None:
        """Drop the gradients of what the step does not train. See `Callback.gradients`."""
        left_out = int(step.tasks[0]) == self.tasks[step.epoch % len(self.tasks)]
        for one in self.learner.trainable():
            if (one.part == "mapping") != left_out:
                one.parameter.grad = None
