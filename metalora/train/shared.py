"""Computing once what many trainings share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalora.config import Config
from metalora.data.table import ImageTable
from metalora.group import Group
from metalora.models.inputs import Preprocessing
from metalora.models.model import MetaLoRAModel
from metalora.train.evaluator import Evaluator
from metalora.train.kept import Shared
from metalora.train.reporter import Reporter


def compute_shared(
    config: Config,
    models: Mapping[str, MetaLoRAModel],
    table: ImageTable,
    preprocess: Preprocessing,
    group: Group,
    reporter: Reporter,
    loader_workers: int,
    keep_images: bool,
) -> Shared:
    """Look at every image of a table once.

    Args:
        config: Settings that all the trainings have: precision, evaluation batch size.
        models: One for each ``extractor_features`` asked for, on the group's device; any one gives the original
            features, as its adapters are off.
        table: The data.
        preprocess: The backbone's.
        group: A group of one.
        reporter: Told the progress.
        loader_workers: Decoding processes.
        keep_images: Whether to keep the images' pixels.
    """
    first = next(iter(models.values()))
    evaluator = Evaluator(config, first, table, preprocess, group, reporter, loader_workers)
    seeded = {name: model.extractor for name, model in models.items() if model.extractor is not None}
    if keep_images:
        evaluator.keep_images()

    def look(batch: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        batch = evaluator.place(batch, rows)
        with evaluator.autocast(), first.disable_adapter():
            original: Any = first.network(batch)
        return original, *(extractor(batch) for extractor in seeded.values())

    with torch.no_grad():
        _, (original, *conditions) = evaluator.embed_rows("shared features", np.arange(len(table)), look)
    return Shared(
        original.numpy(),
        {name: features.numpy() for name, features in zip(seeded, conditions, strict=True)},
        evaluator.images,
    )
