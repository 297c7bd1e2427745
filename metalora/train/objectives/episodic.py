"""Cross-entropy and the k-NN loss within episodes: some classes, and the same number of images of each."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metalora.data.episodes import EpisodeSampler
from metalora.data.table import IntArray
from metalora.errors import UserError
from metalora.registry import Field
from metalora.train.objectives.base import OBJECTIVES, Draw
from metalora.train.objectives.classification import Classification


@OBJECTIVES.register("episodic")
class Episodic(Classification):
    """Cross-entropy plus, within each episode, the loss of a soft nearest-neighbour vote (arXiv 1808.04699).

    loss_i = CE_i - log( sum_{j != i, y_j = y_i} exp(s_ij / t) / sum_{j != i} exp(s_ij / t) ), s cosine similarities
    """

    classes: int = Field(default=8, ge=2, description="classes of an episode")
    images: int = Field(default=4, ge=2, description="images of each class of an episode")
    tasks: Literal["all", "one"] = Field(
        default="all", description="an episode is drawn from the images of all tasks, or from those of one"
    )
    temperature: float = Field(default=0.1, gt=0, description="softmax temperature t of the vote")

    @property
    def mixes(self) -> bool:
        """An episode's vote needs one label for each image. See `Objective.mixes`."""
        return False

    @property
    def one_task(self) -> bool:
        """Whether each episode is drawn from one task. See `Objective.one_task`."""
        return self.tasks == "one"

    def losses(self, features: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Compute the sum of both losses for each image, (B,). See `Objective.losses`."""
        size = self.classes * self.images
        episodes = features.unflatten(0, (-1, size)), labels.unflatten(0, (-1, size))
        return super().losses(features, scores, labels) + knn_loss(*episodes, self.temperature).flatten()

    def sampler(self, label: IntArray, domain: IntArray, draw: Draw) -> EpisodeSampler:
        """Build the sampler of whole episodes. See `Objective.sampler`."""
        if draw.class_sampling == "balanced":
            raise UserError("--class-sampling balanced does not go with --objective episodic: it draws classes itself")
        return EpisodeSampler(
            label,
            domain,
            draw.batch_size,
            classes=self.classes,
            images=self.images,
            one_task=self.one_task,
            **draw.share(),
        )


def knn_loss(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute the negative log-probability of each image's label in a soft nearest-neighbour vote.

    Every image i of an episode is a query, and the other images are its support. This is neighbourhood components
    analysis (Goldberger et al. 2004) with cosine similarity s, in the logarithm of Wu et al. 2018 (arXiv 1808.04699):

        loss_i = -log( sum_{j != i, y_j = y_i} exp(s_ij / t) / sum_{j != i} exp(s_ij / t) )

    Args:
        features: (E, n, D), E episodes of n images; each label of an episode occurs at least twice in it.
        labels: (E, n), label of each image.
        temperature: t, the softmax temperature.

    Returns:
        Losses, (E, n), float64 if the features are that, else float32.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)
        itself = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
        scores = (unit @ unit.mT / temperature).masked_fill(itself, -torch.inf)
    others = labels[:, :, None] != labels[:, None, :]
    return scores.logsumexp(-1) - scores.masked_fill(others, -torch.inf).logsumexp(-1)
