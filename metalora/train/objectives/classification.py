"""Cross-entropy of the head's scores."""

import torch.nn.functional as F
from torch import Tensor

from metalora.config import setting
from metalora.train.objectives.base import OBJECTIVES, Objective


@OBJECTIVES.register("classification")
class Classification(Objective):
    """Cross-entropy with label smoothing e (Szegedy et al., arXiv 1512.00567).

    loss = -sum_c ((1 - e) [c = y] + e / C) log softmax(scores)_c
    """

    label_smoothing: float = setting(
        default=0.0, ge=0, lt=1, description="label smoothing e", words=("smoothing", "smooth")
    )

    @property
    def mixes(self) -> bool:
        """Cross-entropy is linear in the labels' shares. See `Objective.mixes`."""
        return True

    def losses(self, features: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of each image, (B,). See `Objective.losses`."""
        return F.cross_entropy(scores.float(), labels, label_smoothing=self.label_smoothing, reduction="none")
