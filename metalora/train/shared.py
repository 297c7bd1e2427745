"""Compute once the results that several trainings share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalora.config import Config
from metalora.data.table import Table
from metalora.group import Group
from metalora.models.inputs import Inputs
from metalora.models.model import MetaLoRAModel
from metalora.train.feed import build_feed
from metalora.train.kept import Decoded, Shared
from metalora.train.reporter import Reporter


def compute_shared(
    config: Config,
    models: Mapping[str, MetaLoRAModel],
    table: Table,
    inputs: Inputs,
    group: Group,
    reporter: Reporter,
    loader_workers: int,
    keep_images: bool,
    decoded: Decoded | None = None,
) -> Shared:
    """Compute original and extractor features of every image of a table, once for several trainings.

    Args:
        config: Settings that all the trainings have: precision, evaluation batch size.
        models: One model for each value of ``extractor_features``, on the group's device. One of them also gives the
            original features, with its adapters off.
        table: The data.
        inputs: The preprocessing of the backbone's inputs.
        group: A group of one.
        reporter: Gets the progress.
        loader_workers: Decoding processes.
        keep_images: Whether to keep the images' pixels.
        decoded: The samples of the table, if they were decoded before; those of another table are not used.
    """
    first = next(iter(models.values()))
    feed = build_feed(config, table, inputs, group, reporter, loader_workers)
    seeded = {name: model.extractor for name, model in models.items() if model.extractor is not None}
    if decoded is not None and decoded.fingerprint == table.fingerprint:
        feed.use(decoded.codes)
    if keep_images:
        feed.keep()

    def look(images: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        with feed.execution.autocast(), first.disable_adapter():
            original: Any = first.network(images)
        return original, *(extractor(images) for extractor in seeded.values())

    first.eval()
    with torch.no_grad():
        _, (original, *conditions) = feed.embed("shared features", np.arange(len(table)), look)
    return Shared(
        original.numpy(),
        {name: features.numpy() for name, features in zip(seeded, conditions, strict=True)},
        feed.codes,
    )
