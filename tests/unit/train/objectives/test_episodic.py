"""The k-NN loss against a direct computation, scikit-learn's NCA and finite differences."""

import numpy as np
import torch
from sklearn.neighbors import NeighborhoodComponentsAnalysis
from torch import Tensor

from metalora.train.objectives.episodic import knn_loss


def _episodes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 12, 5, generator=generator)
    return features, torch.arange(4).repeat_interleave(3).expand(2, -1)


def test_equals_a_direct_computation() -> None:
    features, labels = _episodes()
    ours = knn_loss(features, labels, 0.2)
    for e, episode in enumerate(features.double().numpy()):
        unit = episode / np.linalg.norm(episode, axis=1, keepdims=True)
        for i in range(len(unit)):
            votes = {j: np.exp(unit[i] @ unit[j] / 0.2) for j in range(len(unit)) if j != i}
            right = sum(vote for j, vote in votes.items() if labels[e, j] == labels[e, i])
            np.testing.assert_allclose(ours[e, i], -np.log(right / sum(votes.values())), rtol=1e-5)


def test_the_vote_is_that_of_scikit_learns_nca() -> None:
    """On unit vectors -|a - b|^2 is 2 cos - 2: NCA's softmax at temperature 0.5. Its loss is minus the sum of votes."""
    features, labels = _episodes()
    unit = torch.nn.functional.normalize(features[0].double(), dim=1).numpy()
    same = (labels[0][:, None] == labels[0][None]).numpy()
    judge = NeighborhoodComponentsAnalysis()
    judge.n_iter_ = 0
    loss, _ = judge._loss_grad_lbfgs(np.eye(5).ravel(), unit, same, sign=-1.0)
    ours = float((-knn_loss(features[:1], labels[:1], 0.5)).exp().sum())
    np.testing.assert_allclose(ours, -loss, rtol=1e-5)


def test_gradient_is_that_of_finite_differences() -> None:
    features, labels = _episodes()
    wide = features.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: knn_loss(x, labels, 0.2), (wide,))
