"""Training in this process, without Ray."""

import os
from pathlib import Path

from metalora.build import build_trainer
from metalora.data.loaders import count_loader_workers
from metalora.group import Group
from metalora.train.checkpoint import CheckpointFolder
from pipelines.backend.device import this_device
from pipelines.backend.prepare import Prepared
from pipelines.run.log import RunLog


def train_here(prepared: Prepared, log: RunLog, checkpoints: CheckpointFolder, resume: Path | None) -> Path:
    """Train in this process.

    Args:
        prepared: Settings, data and networks.
        log: Keeps the checkpoints too.
        checkpoints: Where.
        resume: A checkpoint to go on from.

    Returns:
        The folder of the last checkpoint, with the results in it.
    """
    config, gpus = prepared.config, prepared.config.cluster.gpus_per_worker
    device = this_device(None if gpus is None else gpus > 0)
    trainer = build_trainer(
        config,
        prepared.model.to(device),
        prepared.table,
        prepared.backbone.inputs,
        Group.current(device),
        log,
        count_loader_workers(config.data.loader_workers, os.cpu_count() or 1),
        decoded=prepared.decoded,
    )
    trainer.fit(resume)
    finished = checkpoints.latest()
    assert finished is not None, "the trainer ends with a checkpoint"
    return finished
