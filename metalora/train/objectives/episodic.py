"""What an episode adds to the cross-entropy."""

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_loss(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return how improbable a soft nearest-neighbour vote finds each image's label.

    Every image i of an episode is a query, the others its support. Neighbourhood components analysis (Goldberger et
    al. 2004) by cosine similarity s, in the logarithm of Wu et al. 2018 (arXiv 1808.04699):

        loss_i = -log( sum_{j != i, y_j = y_i} exp(s_ij / t) / sum_{j != i} exp(s_ij / t) )

    Args:
        features: (E, n, D), E episodes of n images; each label of an episode occurs twice or more in it.
        labels: (E, n).
        temperature: t.

    Returns:
        Losses, (E, n), float64 if the features are that, else float32.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)
        itself = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
        scores = (unit @ unit.mT / temperature).masked_fill(itself, -torch.inf)
    others = labels[:, :, None] != labels[:, None, :]
    return scores.logsumexp(-1) - scores.masked_fill(others, -torch.inf).logsumexp(-1)
