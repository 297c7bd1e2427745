"""Which images make a micro-batch."""

import numpy as np

from metalora.config import Config
from metalora.data.episodes import EpisodeSampler
from metalora.data.sampler import BatchSampler
from metalora.data.table import ImageTable
from metalora.errors import UserError
from metalora.group import Group
from metalora.models.model import MetaLoRAModel


def leaves_out(config: Config) -> bool:
    """Tell whether each epoch leaves a task out."""
    return config.train.objective == "episodic" and config.train.episode_tasks == "in_turn"


def build_sampler(config: Config, model: MetaLoRAModel, table: ImageTable, group: Group) -> BatchSampler:
    """Return what a rank's micro-batches are drawn by.

    Raises:
        UserError: the train images, or the model, are not such that these batches can be made of them.
    """
    settings, rows = config.train, table.rows("train")
    label, domain = table.label[rows], table.domain[rows]
    if leaves_out(config) and (model.network.mapping is None or len(np.unique(domain)) == 1):
        raise UserError("episode_tasks = in_turn needs a format with generated seeds, and two tasks or more")
    if settings.objective == "classification":
        return BatchSampler(
            domain,
            config.data.batch_size,
            seed=settings.random_seed,
            sampling=config.data.domain_sampling,
            accumulate=settings.accumulate,
            rank=group.rank,
            world=group.world,
        )
    return EpisodeSampler(
        label,
        domain,
        config.data.batch_size,
        classes=settings.episode_classes,
        images=settings.episode_images,
        one_task=settings.episode_tasks != "all",
        seed=settings.random_seed,
        accumulate=settings.accumulate,
        rank=group.rank,
        world=group.world,
    )
