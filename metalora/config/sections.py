"""The sections backbone, adapter, mapping and data: frozen dataclasses that are checked when they are made."""

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, field_validator
from pydantic.dataclasses import dataclass

from metalora.config.facts import fixed, setting
from metalora.places import absolute_data, absolute_place, absolute_tracking, absolute_weights
from metalora.registry import STRICT, Choice, Method

Place = Annotated[str, AfterValidator(absolute_place)]
DataPlace = Annotated[str, AfterValidator(absolute_data)]
WeightsPlace = Annotated[str, AfterValidator(absolute_weights)]
TrackingPlace = Annotated[str, AfterValidator(absolute_tracking)]
PLACES = (Place, DataPlace, WeightsPlace, TrackingPlace)


@dataclass(frozen=True, config=STRICT)
class AdapterConfig:
    """Which layers get which low-rank update."""

    format: Method = setting(default=Choice("tr"), description="kind of low-rank update")
    initializer: Method = setting(default=Choice("lora"), description="first values of the factors")
    init_adapter: Place | None = fixed(
        default=None,
        description="adapter to begin with: a run's name or folder, whose backbone, adapter and mapping settings are "
        "then the defaults, or an adapter's folder",
    )
    rank: int = setting(
        default=4, ge=1, description="rank R of the update (tr uses R*R channels)", words=("r", "lora_r")
    )
    alpha: float | None = setting(
        default=None,
        gt=0,
        description="the update is scaled by alpha / rank (default: alpha = rank)",
        words=("lora_alpha",),
    )
    target_modules: tuple[str, ...] = setting(
        default=("auto",),
        description="layers to adapt: auto, or names, name endings, globs, or 're:' and a regular expression",
        words=("target_layers",),
    )
    exclude_modules: tuple[str, ...] = setting(default=(), description="modules to leave alone, as names or patterns")
    rank_pattern: dict[str, int] = setting(default={}, description="rank by module pattern; the first match wins")
    alpha_pattern: dict[str, float] = setting(default={}, description="alpha by module pattern; the first match wins")
    modules_to_save: tuple[str, ...] = setting(
        default=(),
        description="modules (for example norms) to train in full and save with the adapter",
        words=("trainable_modules",),
    )
    parameter_budget: int | None = setting(
        default=None,
        ge=1,
        description="choose the ranks so that adapter and mapping net have at most this many parameters",
    )


@dataclass(frozen=True, config=STRICT)
class MappingConfig:
    """How the seed is generated (formats cp and tr)."""

    mapping_depth: int = setting(default=2, ge=1, description="layers of the mapping net before the heads")
    mapping_width: int = setting(default=32, ge=1, description="width of the mapping net")
    mapping_lr_scale: float = setting(
        default=0.1, gt=0, description="learning rate of mapping net and heads, as a fraction of lr"
    )
    seed_scope: Literal["layer", "shared"] = setting(
        default="layer", description="one seed per layer, or one for all layers of the same rank"
    )
    seed_granularity: Literal["sample", "task"] = setting(
        default="sample",
        description="one seed per image, or per task: the mean over the task's images in the batch "
        "(in validation and test: in the train split)",
        graph_needs="sample",
    )
    extractor: str = setting(
        default="backbone", description="feature extractor: 'backbone' (itself, unadapted), or a backbone's name"
    )
    extractor_weights: WeightsPlace = setting(
        default="default", description="weights of the extractor if it is another network, as for --weights"
    )
    extractor_features: Literal["pooled", "stats", "both"] = setting(
        default="stats", description="pooled last features, channel statistics of early layers, or both"
    )
    cache_features: bool = setting(
        default=True, description="compute the extractor's features once, and not at every step", free=True
    )


@dataclass(frozen=True, config=STRICT)
class BackboneConfig:
    """The frozen network."""

    backbone: str = fixed(
        default="resnet20",
        description="resnet20, mixer_tiny, torchvision/NAME or timm/NAME, e.g. timm/mixer_b16_224",
        words=("model_name", "architecture", "model", "arch"),
    )
    weights: WeightsPlace = fixed(
        default="default",
        description="default (the library's pretrained weights; for resnet20 and mixer_tiny those trained on "
        "plain scans), a weights name of the library, none (random), or the path of a state dict "
        "(.safetensors, .pt, .pth)",
    )
    image_size: int | None = fixed(
        default=None,
        ge=8,
        description="side of the square input (default: the backbone's own)",
        words=("img_size", "input_size", "resolution"),
    )


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which images are trained on, and in which order."""

    data: DataPlace = fixed(
        default="embedded",
        description="embedded, a folder root/domain/class/image (or below root: train, val and test), Parquet (a file, "
        "a folder of files or a URI), or CSV that names image files",
        free=True,
        words=("dataset", "data_dir"),
    )
    exclude_domains: tuple[str, ...] = fixed(default=(), description="domains to leave out")
    holdout_domains: tuple[str, ...] = fixed(
        default=(), description="domains never trained on, only evaluated at the end"
    )
    val_fraction: float = fixed(
        default=0.1,
        ge=0,
        lt=1,
        description="share of each class held out for validation, if folders or a table of paths give no such split",
    )
    test_fraction: float = fixed(
        default=0.2, gt=0, lt=1, description="share of each class held out for the test, likewise"
    )
    allow_different_labels: bool = fixed(
        default=False, description="accept domains that lack some labels of other domains"
    )
    on_bad_image: Literal["error", "skip"] = fixed(
        default="error", description="if an image cannot be decoded: stop (error), or leave it out and count it (skip)"
    )
    verify_images: bool = fixed(
        default=True, description="decode every image once before the first training (the result is kept)", free=True
    )
    max_pixels: int = fixed(
        default=2**26,
        ge=1,
        description="largest number of pixels of an image (default: 8192 x 8192); larger JPEGs are decoded smaller",
    )
    batch_size: int = fixed(
        default=64,
        ge=1,
        description="images per optimizer step, over all workers and accumulation steps",
        words=("bs", "train_batch_size", "per_device_train_batch_size"),
    )
    domain_sampling: Literal["balanced", "natural"] = fixed(
        default="balanced", description="images of all domains in equal shares, or as often as they occur"
    )
    class_sampling: Literal["natural", "balanced"] = fixed(
        default="natural",
        description="images of each class of a domain as often as they occur, or all its classes in equal shares",
        words=("sampler", "weighted_sampler", "balanced_sampling"),
    )
    loader_workers: int | None = fixed(
        default=None,
        ge=0,
        description="decoding processes per worker (default: one less than its CPUs, at most 8; none below 4 CPUs)",
        free=True,
        words=("num_workers", "dataloader_num_workers"),
    )
    keep_images: float = fixed(
        default=1.0,
        ge=0,
        description="GiB of each worker's memory for decoded images: if all fit, they are decoded once, not in every "
        "epoch, and stay on the GPU if they take little of its memory",
        free=True,
    )

    @field_validator("exclude_domains", "holdout_domains")
    @classmethod
    def _composed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Write names in Unicode's NFC, as the data's are: terminals and file systems spell one name in two ways."""
        return tuple(unicodedata.normalize("NFC", name) for name in names)
