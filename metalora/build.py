"""From a config to the things it describes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from metalora.config import Config
from metalora.models import backbones
from metalora.models.adapt import adapt
from metalora.models.backbones import Backbone
from metalora.models.backbones.small_networks import EMBEDDED
from metalora.models.model import MetaLoRAModel


def build_backbone(
    name: str,
    weights: str = "default",
    image_size: int | None = None,
    say: Callable[[str], None] = print,
    file: Path | None = None,
) -> Backbone:
    """Build a backbone by name, in eval mode.

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
        backbone = build_backbone(settings.backbone, settings.weights, settings.image_size, say, files.get("backbone"))
        if mapping.extractor == "backbone":
            return backbone, None
        # The extractor looks at the image that the backbone's preprocessing made.
        size = backbone.input_size[1]
        return backbone, build_backbone(mapping.extractor, mapping.extractor_weights, size, say, files.get("extractor"))


def build_model(
    config: Config, backbone: Backbone, extractor: nn.Module | None, labels: Sequence[str]
) -> MetaLoRAModel:
    """Put fresh adapters and a head on a backbone, with initial values that depend on ``train.random_seed`` alone.

    Raises:
        UserError: a target or a rank that does not fit.
    """
    adapter, mapping = config.adapter, config.mapping
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.random_seed)
        return adapt(
            backbone,
            adapter.format,
            adapter.rank,
            adapter.alpha,
            branches=adapter.branches,
            target_modules=adapter.target_modules,
            exclude_modules=adapter.exclude_modules,
            rank_pattern=adapter.rank_pattern,
            alpha_pattern=adapter.alpha_pattern,
            modules_to_save=adapter.modules_to_save,
            parameter_budget=adapter.parameter_budget,
            extractor=extractor,
            extractor_features=mapping.extractor_features,
            seed_scope=mapping.seed_scope,
            mapping_depth=mapping.mapping_depth,
            mapping_width=mapping.mapping_width,
            labels=labels,
        )
