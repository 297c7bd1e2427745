"""The optimizer and its schedule."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


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
