"""AdamW (Loshchilov and Hutter, arXiv 1711.05101)."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metalora.config import setting
from metalora.errors import UserError
from metalora.models.model import Trainable
from metalora.reading import short
from metalora.tensor_files import check_like
from metalora.train.optimizers.base import OPTIMIZERS, OptimizerMethod


@OPTIMIZERS.register("adamw")
class AdamW(OptimizerMethod):
    """Adam with decoupled weight decay (arXiv 1711.05101).

    theta <- theta - lr (m / (sqrt v + eps) + decay theta), m and v the bias-corrected moments of the gradient.

    Vectors (biases, norms, branch scales) are not decayed.
    """

    weight_decay: float = setting(
        default=0.01, ge=0, description="weight decay of matrices and kernels", words=("wd", "decay", "l2")
    )

    def build(self, trained: Iterable[Trainable], lr: float, scales: Mapping[str, float]) -> torch.optim.AdamW:
        """Build torch's AdamW, with one group per rate and decay. See `OptimizerMethod.build`."""
        groups: dict[tuple[str | None, bool], list[nn.Parameter]] = {}
        for one in trained:
            part = one.part if one.part in scales else None
            groups.setdefault((part, one.parameter.dim() > 1), []).append(one.parameter)
        return torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "lr": lr * (1.0 if part is None else scales[part]),
                    "weight_decay": self.weight_decay if matrix else 0.0,
                }
                for (part, matrix), parameters in groups.items()
            ],
        )

    def check_state(self, state: Mapping[str, Any], parameter: Tensor, name: str, step: int) -> None:
        """Check the moments of one parameter. See `OptimizerMethod.check_state`."""
        if set(state) != {"step", "exp_avg", "exp_avg_sq"}:
            raise UserError(f"{name} holds {short(sorted(state))}, not step, exp_avg and exp_avg_sq")
        for part in ("exp_avg", "exp_avg_sq"):
            check_like(state[part], parameter, f"{name}.{part}", exact=True)
        if state["exp_avg_sq"].numel() and float(state["exp_avg_sq"].min()) < 0:
            raise UserError(f"{name}.exp_avg_sq has values below 0: it is a mean of squares")
        check_like(state["step"], torch.zeros(()), f"{name}.step", exact=True)
        if not 0 <= float(state["step"]) <= step:
            raise UserError(f"{name}.step is {short(state['step'])}, not 0 to {step}")
