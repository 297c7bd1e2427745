"""The optimizer and its schedule."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from metalora.errors import UserError
from metalora.reading import short
from metalora.tensor_files import check_like


def build_optimizer(
    trainable: Iterable[tuple[str, nn.Parameter]], lr: float, mapping_lr_scale: float, weight_decay: float
) -> AdamW:
    """Make AdamW (Loshchilov and Hutter, arXiv 1711.05101) over the trainable parameters.

    The mapping net and its heads learn at ``lr * mapping_lr_scale``: at the full rate the generator is
    unstable. Vectors (biases, norms, branch scales) are not decayed.

    Args:
        trainable: Named parameters, as `MetaLoRAModel.trainable` returns them.
        lr: Peak learning rate.
        mapping_lr_scale: Factor for the mapping net.
        weight_decay: For matrices and kernels.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable:
        groups.setdefault((name.startswith("mapping."), parameter.dim() > 1), []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "lr": lr * (mapping_lr_scale if mapping else 1.0),
                "weight_decay": weight_decay if matrix else 0.0,
            }
            for (mapping, matrix), parameters in groups.items()
        ],
    )


def warmup_cosine(optimizer: AdamW, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Scale every rate linearly up over the warm-up, then by half a cosine down to 0 at the last step.

    A run shorter than twice the warm-up warms up for its first half.
    """
    warmup = min(warmup_steps, total_steps // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def restore(optimizer: AdamW, schedule: LambdaLR, state: Mapping[str, Any], step: int) -> None:
    """Put an optimizer and its schedule where they were after a step.

    Args:
        optimizer: Fresh, of the same parameters.
        schedule: Its schedule.
        state: The optimizer's ``state_dict``, of which only the moments are taken.
        step: The optimizer steps taken.

    Raises:
        UserError: moments of other parameters.
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
        _check_moments(met_moments, parameters[index], f"optimizer.state.{index}", step)
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    # clones, since a stranger's tensor may be a view that cannot be written to
    moments = {index: {name: t.clone() for name, t in one.items()} for index, one in state["state"].items()}
    groups = [{**group, "lr": rate} for group, rate in zip(own["param_groups"], rates, strict=True)]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    there = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    schedule.load_state_dict({**schedule.state_dict(), **there})


def _check_moments(moments: Mapping[str, Tensor], parameter: Tensor, name: str, step: int) -> None:
    if set(moments) != {"step", "exp_avg", "exp_avg_sq"}:
        raise UserError(f"{name} holds {short(sorted(moments))}, not step, exp_avg and exp_avg_sq")
    for part in ("exp_avg", "exp_avg_sq"):
        check_like(moments[part], parameter, f"{name}.{part}", exact=True)
    if moments["exp_avg_sq"].numel() and float(moments["exp_avg_sq"].min()) < 0:
        raise UserError(f"{name}.exp_avg_sq has values below 0: it is a mean of squares")
    check_like(moments["step"], torch.zeros(()), f"{name}.step", exact=True)
    if not 0 <= float(moments["step"]) <= step:
        raise UserError(f"{name}.step is {short(moments['step'])}, not 0 to {step}")
