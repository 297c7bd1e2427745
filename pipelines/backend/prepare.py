"""Everything that a training needs, built and checked before any cluster resource is taken."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from metalora.build import build_model, build_networks, check_training
from metalora.config import Config
from metalora.data import Table
from metalora.data.counts import counted, described, imbalance
from metalora.data.load import open_table, verify_table
from metalora.data.survey import equal_codes, leaks
from metalora.data.verify import Keeper
from metalora.errors import UserError, given_as
from metalora.models.backbones.base import Backbone
from metalora.models.initial import Initial, read_initial
from metalora.models.model import MetaLoRAModel
from metalora.train.kept import Decoded


@dataclass(frozen=True)
class Prepared:
    """What a training needs, built and checked before any cluster resource is taken.

    Attributes:
        config: All settings.
        table: The data.
        backbone: The backbone.
        extractor: The extractor; None if it is the backbone.
        model: The model with fresh adapters.
        decoded: The samples, if they fit into memory.
        initial: The adapter to begin with.
        steps: Optimizer steps of an epoch, and of the whole training.
    """

    config: Config
    table: Table
    backbone: Backbone
    extractor: Backbone | None
    model: MetaLoRAModel
    decoded: Decoded | None = None
    initial: Initial | None = None
    steps: tuple[int, int] = (0, 0)

    @property
    def networks(self) -> tuple[Backbone, Backbone | None, Initial | None]:
        """Backbone, extractor and initial adapter, which workers and trials build their model from."""
        return self.backbone, self.extractor, self.initial


def prepare(
    config: Config, say: Callable[[str], None], begins: bool = True, warn: Callable[[str], None] | None = None
) -> Prepared:
    """Build and check everything that needs no cluster.

    Args:
        config: All settings.
        say: Told what takes long, and what the data are.
        begins: Whether the training has no checkpoint to go on from.
        warn: Told what was left out; default: ``say``.

    Raises:
        UserError: what the user can mend.
    """
    if config.cluster.workers:
        from pipelines.backend.cluster import ask, check_resources, cluster_address, this_machine

        address = cluster_address(config.cluster)
        if address is None:
            check_resources(config.cluster, this_machine(), "this machine")
        else:
            ask(address)
    elif config.cluster.gpus_per_worker and not torch.cuda.is_available():
        raise UserError(f"gpus_per_worker {config.cluster.gpus_per_worker:g}: PyTorch finds no GPU on this machine"
                        f"{given_as('gpus_per_worker')}")  # fmt: skip
    warn = warn or say
    table = open_table(config.data)
    backbone, extractor = build_networks(config, say)
    keeper = Keeper(backbone.inputs.encode, backbone.inputs.example(1), config.data.keep_images * 2**30)
    table = verify_table(table, config.data, keeper)
    if table.skipped:
        said = counted(len(table.skipped), "image")
        warn(f"left out: {said} that cannot be decoded, the first: {table.skipped[0]}")
    if table.ignored:
        said = counted(len(table.ignored), "file")
        why = "no image or not where images are looked for"
        warn(f"left out: {said} in {config.data.data}, {why}, the first: {table.ignored[0]}")
    leaked = 0 if keeper.codes is None else len(leaks(table, equal_codes(keeper.codes)))
    if leaked:
        said = f"{counted(leaked, 'image')} of val or test also in an earlier split, as the network sees it"
        warn(f"{said} (metalora data inspect looks closer)")
    images = len(table.rows("train"))
    if max(config.evaluate.knn) > images:
        raise UserError(
            f"knn {max(config.evaluate.knn)} is more than the {images} images of the train split{given_as('knn')}"
        )
    place = config.adapter.init_adapter
    initial = read_initial(Path(place)) if place is not None and begins else None
    model = build_model(config, backbone, extractor, table.labels, initial)
    plan = check_training(config, model, table, backbone.inputs, max(1, config.cluster.workers))
    say(f"data      {described(table)}")
    uneven = imbalance(table)
    if uneven is not None:
        say(f"          classes differ in size: {uneven}")
    decoded = None if keeper.codes is None else Decoded(keeper.codes, table.fingerprint)
    if initial is not None:
        known, labels = initial.known(table.labels), len(table.labels)
        said = "all classes" if len(known) == labels else f"{len(known):,} of {labels:,} classes, the others are new"
        say(f"begins    with the adapter {initial.place}; its classifier knows {said}")
    return Prepared(config, table, backbone, extractor, model, decoded, initial, (plan.steps_per_epoch, plan.steps))
