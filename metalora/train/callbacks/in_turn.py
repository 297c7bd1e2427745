"""Leave tasks out in turn."""

from metalora.errors import UserError
from metalora.train.callbacks.base import CALLBACKS, Callback, Plan, Step
from metalora.train.learner import Learner


@CALLBACKS.register("in_turn")
class InTurn(Callback):
    """Each epoch leaves one task out: steps of this task train only the mapping net, other steps everything else.

    In epoch e, number e mod T of the T trained tasks is left out. Each step must be of one task (``objective``:
    ``episodic`` with ``tasks: one``).
    """

    def attach(self, learner: Learner, plan: Plan) -> None:
        """Check that there are tasks to leave out. See `Callback.attach`."""
        super().attach(learner, plan)
        self.tasks = learner.tasks
        generated = any(one.part == "mapping" for one in learner.trainable())
        if not generated or len(self.tasks) < 2:
            raise UserError("callback in_turn needs a format with generated seeds, and two tasks or more")
        if not learner.one_task:
            raise UserError("callback in_turn needs steps of one task each: --objective episodic --objective.tasks one")

    def gradients(self, step: Step) -> None:
        """Drop the gradients of the parameters that the step does not train. See `Callback.gradients`."""
        left_out = int(step.tasks[0]) == self.tasks[step.epoch % len(self.tasks)]
        for one in self.learner.trainable():
            if (one.part == "mapping") != left_out:
                one.parameter.grad = None
