"""From a config to the things it describes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from metalora.config import Config
from metalora.data import Table
from metalora.errors import UserError, given_as
from metalora.group import Group
from metalora.models import backbones
from metalora.models.adapt import adapt_by
from metalora.models.backbones import Backbone
from metalora.models.backbones.small_networks import EMBEDDED
from metalora.models.initial import Initial, begin_with
from metalora.models.inputs import Inputs
from metalora.models.model import MetaLoRAModel
from metalora.train.callbacks import CALLBACKS, Callbacks
from metalora.train.callbacks.base import Plan
from metalora.train.checkpoint import seed_everything
from metalora.train.evaluator import Evaluator
from metalora.train.feed import build_feed
from metalora.train.kept import Decoded, Shared
from metalora.train.learner import AdapterLearner
from metalora.train.optimizers import OPTIMIZERS
from metalora.train.reporter import Reporter, SilentReporter
from metalora.train.selection import check_selection
from metalora.train.trainer import Trainer, plan_of


def build_backbone(
    name: str,
    weights: str = "default",
    image_size: int | None = None,
    say: Callable[[str], None] = print,
    file: Path | None = None,
) -> Backbone:
    """Build a backbone by name, in eval mode.

    >>> build_backbone("resnet20", "none").num_features
    64

    Args:
        name: ``resnet20``, ``mixer_tiny``, ``torchvision/NAME`` or ``timm/NAME``.
        weights: ``default`` (the library's; for this project's own those of the embedded data, trained now if the
            cache has none), a weights name of the library, ``none`` (random), or the path of a state dict.
        image_size: Side of the square input; None for the weights' own.
        say: Told what takes long.
        file: A state dict to load in place of the library's own tensors.

    Raises:
        UserError: an unknown name, or weights that cannot be had or do not fit.
    """
    if file is not None or name not in EMBEDDED or weights != "default":
        return backbones.build_backbone(name, weights, image_size, file=file)
    from metalora.train.pretrain import embedded_weights

    return backbones.build_backbone(name, weights, image_size, file=embedded_weights(name, say))


def build_networks(
    config: Config, say: Callable[[str], None], files: Mapping[str, Path] | None = None
) -> tuple[Backbone, Backbone | None]:
    """Build the backbone and, where it is another network, the extractor.

    Random weights follow from ``train.random_seed``.

    Args:
        config: All settings.
        say: Told what takes long.
        files: State dicts of ``backbone`` and ``extractor`` to load in place of the libraries' own tensors.

    Raises:
        UserError: an unknown name, or weights that cannot be had.
    """
    settings, mapping, files = config.backbone, config.mapping, files or {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.random_seed)
        with _given_by("backbone", "weights", "image_size"):
            backbone = build_backbone(
                settings.backbone, settings.weights, settings.image_size, say, files.get("backbone")
            )
        if mapping.extractor == "backbone":
            return backbone, None
        # The extractor looks at the image that the backbone's preprocessing made.
        size = backbone.input_size[1]
        with _given_by("extractor", "extractor_weights"):
            file = files.get("extractor")
            return backbone, build_backbone(mapping.extractor, mapping.extractor_weights, size, say, file)


@contextmanager
def _given_by(*settings: str) -> Iterator[None]:
    """Add to an error which options give what cannot be built: a network has several, and two networks are built."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}{given_as(*settings)}") from error


def build_model(
    config: Config,
    backbone: Backbone,
    extractor: nn.Module | None,
    labels: Sequence[str],
    initial: Initial | None = None,
) -> MetaLoRAModel:
    """Put fresh adapters and a head on a backbone, with initial values that depend on ``train.random_seed`` alone.

    Args:
        config: All settings.
        backbone: The backbone.
        extractor: The extractor; None if it is the backbone.
        labels: Names of the classes.
        initial: The adapter whose values the adapters get.

    Raises:
        UserError: a target or a rank that does not fit, or an initial adapter of another structure.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.random_seed)
        model = adapt_by(
            backbone, config.adapter, config.mapping, extractor, labels, random_seed=config.train.random_seed
        )
    if initial is not None:
        begin_with(model, initial)
    return model


def build_trainer(
    config: Config,
    model: MetaLoRAModel,
    table: Table,
    inputs: Inputs,
    group: Group,
    reporter: Reporter,
    loader_workers: int = 0,
    shared: Shared | None = None,
    decoded: Decoded | None = None,
) -> Trainer:
    """Build the trainer of a model on a table, on one rank, whose generators are seeded by ``train.random_seed``.

    Args:
        config: All settings.
        model: On the group's device, with a head.
        table: The data.
        inputs: What the backbone takes.
        group: The ranks.
        reporter: Listens.
        loader_workers: Decoding processes of this rank.
        shared: What has been computed for this and other trainings.
        decoded: The samples of the table, if they were decoded before; those of another table are not used.

    Raises:
        UserError: settings that do not go with the data, the model or the device.
    """
    seed_everything(config.train.random_seed + group.rank)
    callbacks = [CALLBACKS.make(choice) for choice in config.train.callbacks]
    graphable = all(callback.graphable for callback in callbacks)
    learner = AdapterLearner(config, model, table, inputs, group, reporter, loader_workers, shared, graphable)
    if decoded is not None and decoded.fingerprint == table.fingerprint:
        learner.feed.use(decoded.codes)
    return Trainer(config, learner, group, reporter, callbacks)


def build_evaluator(
    config: Config,
    model: MetaLoRAModel,
    table: Table,
    inputs: Inputs,
    group: Group,
    reporter: Reporter,
    loader_workers: int,
) -> Evaluator:
    """Build the evaluator of a trained model, on one rank, with the images in memory if they fit there.

    Args:
        config: As for `build_trainer`; the others likewise.
        model: On the group's device, with a head.
        table: The data.
        inputs: What the backbone takes.
        group: The ranks.
        reporter: Told the progress.
        loader_workers: Decoding processes of this rank.
    """
    feed = build_feed(config, table, inputs, group, reporter, loader_workers)
    feed.keep(config.data.keep_images * 2**30)
    return Evaluator(config, model, table, feed)


def check_training(config: Config, model: MetaLoRAModel, table: Table, inputs: Inputs, workers: int) -> Plan:
    """Check that a training's batches can be drawn, on so many workers, and that callbacks and validations go with it.

    Returns:
        What the training will be.

    Raises:
        UserError: settings that do not go with the data or the model.
    """
    group = Group(torch.device("cpu"), world=workers)
    learner = AdapterLearner(config, model, table, inputs, group, SilentReporter())
    OPTIMIZERS.make(config.train.optimizer)
    check_selection(config, table)
    plan = plan_of(config.train, learner, group)
    Callbacks([CALLBACKS.make(choice) for choice in config.train.callbacks]).attach(learner, plan)
    return plan
