"""The sections of the settings: frozen dataclasses, checked when made."""

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from metalora.places import absolute_data, absolute_place, absolute_tracking, absolute_weights

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


Place = Annotated[str, AfterValidator(absolute_place)]


DataPlace = Annotated[str, AfterValidator(absolute_data)]


WeightsPlace = Annotated[str, AfterValidator(absolute_weights)]


TrackingPlace = Annotated[str, AfterValidator(absolute_tracking)]


PLACES = (Place, DataPlace, WeightsPlace, TrackingPlace)


@dataclass(frozen=True, config=_STRICT)
class AdapterConfig:
    """Which low-rank update is put on which layers."""

    format: str = Field(default="tr", description="lora, multi_lora, cp or tr")
    rank: int = Field(default=4, ge=1, description="rank R of the update (tr uses R*R channels)")
    alpha: float | None = Field(
        default=None, gt=0, description="the update is scaled by alpha / rank (default: alpha = rank)"
    )
    branches: int = Field(default=4, ge=1, description="parallel branches of multi_lora")
    target_modules: tuple[str, ...] = Field(
        default=("auto",), description="auto, names, name endings, globs, or 're:' and a regular expression"
    )
    exclude_modules: tuple[str, ...] = Field(default=(), description="modules to leave alone, written likewise")
    rank_pattern: dict[str, int] = Field(default={}, description="rank by module pattern; the first match wins")
    alpha_pattern: dict[str, float] = Field(default={}, description="alpha by module pattern; the first match wins")
    modules_to_save: tuple[str, ...] = Field(
        default=(), description="modules (norms, say) trained in full and saved with the adapter"
    )
    parameter_budget: int | None = Field(
        default=None,
        ge=1,
        description="pick the ranks so that adapter and mapping net have at most this many parameters",
    )


@dataclass(frozen=True, config=_STRICT)
class MappingConfig:
    """How the seed is generated (cp and tr)."""

    mapping_depth: int = Field(default=2, ge=1, description="layers of the mapping net before the heads")
    mapping_width: int = Field(default=32, ge=1, description="width of the mapping net")
    mapping_lr_scale: float = Field(
        default=0.1, gt=0, description="learning rate of mapping net and heads, as a fraction of lr"
    )
    seed_scope: Literal["layer", "shared"] = Field(
        default="layer", description="one seed a layer, or one for all layers of a size"
    )
    seed_granularity: Literal["sample", "task"] = Field(
        default="sample",
        description="each image its own seed, or its task's mean (over the batch; then over the train split)",
    )
    extractor: str = Field(
        default="backbone", description="feature extractor: 'backbone' (itself, unadapted) or a backbone's name"
    )
    extractor_weights: WeightsPlace = Field(
        default="default", description="weights of another extractor, as for --weights"
    )
    extractor_features: Literal["pooled", "stats", "both"] = Field(
        default="stats", description="pooled last features, channel statistics of early layers, or both"
    )
    cache_features: bool = Field(default=True, description="compute the extractor's features once, not at every step")


@dataclass(frozen=True, config=_STRICT)
class BackboneConfig:
    """The frozen network."""

    backbone: str = Field(
        default="resnet20", description="resnet20, mixer_tiny, torchvision/NAME or timm/NAME, e.g. timm/mixer_b16_224"
    )
    weights: WeightsPlace = Field(
        default="default",
        description="default (the library's pretrained weights; for resnet20 and mixer_tiny those trained on "
        "plain scans), a weights name of the library, none (random), or the path of a state dict "
        "(.safetensors, .pt, .pth)",
    )
    image_size: int | None = Field(
        default=None, ge=8, description="side of the square input (default: the backbone's own)"
    )


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """What is trained on, in which order."""

    data: DataPlace = Field(
        default="embedded",
        description="embedded, a folder root/domain/class/image (or below root: train, val and test), or Parquet: a "
        "file, a folder of files or a URI",
    )
    exclude_domains: tuple[str, ...] = Field(default=(), description="domains to leave out")
    holdout_domains: tuple[str, ...] = Field(
        default=(), description="domains never trained on, only evaluated at the end"
    )
    val_fraction: float = Field(default=0.1, ge=0, lt=1, description="share of a folder source held out for validation")
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="share of a folder source held out for the test")
    allow_different_labels: bool = Field(
        default=False, description="accept domains that lack some labels of the others"
    )
    on_bad_image: Literal["error", "skip"] = Field(
        default="error", description="an image that cannot be decoded: stop, or leave out and count"
    )
    verify_images: bool = Field(default=True, description="decode every image once before training (remembered)")
    max_pixels: int = Field(
        default=2**26,
        ge=1,
        description="most pixels of an image (default: 8192 x 8192); larger JPEGs are decoded smaller",
    )
    batch_size: int = Field(
        default=64, ge=1, description="images of one optimizer step, over all workers and accumulation steps"
    )
    domain_sampling: Literal["balanced", "natural"] = Field(
        default="balanced", description="domains in equal shares, or as often as they occur"
    )
    loader_workers: int | None = Field(
        default=None,
        ge=0,
        description="decoding processes a worker (default: one less than its CPUs, at most 8; none below 4 CPUs)",
    )
    keep_images: float = Field(
        default=1.0,
        ge=0,
        description="GiB of each worker's memory for the images' pixels: if all fit, they are decoded once, not each "
        "epoch, and lie on the GPU if they take little of it",
    )

    @field_validator("exclude_domains", "holdout_domains")
    @classmethod
    def _composed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Write names in Unicode's NFC, as the data's are: terminals and file systems spell one name in two ways."""
        return tuple(unicodedata.normalize("NFC", name) for name in names)


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """Optimization."""

    epochs: int = Field(default=8, ge=1, description="passes over the train split")
    lr: float = Field(default=6e-3, gt=0, description="peak learning rate of adapter and head")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay")
    warmup_steps: int = Field(default=20, ge=0, description="optimizer steps of linear warm-up, before the cosine")
    objective: Literal["classification", "episodic"] = Field(
        default="classification", description="cross-entropy, or that and the k-NN loss within episodes"
    )
    episode_classes: int = Field(default=8, ge=2, description="classes of an episode")
    episode_images: int = Field(default=4, ge=2, description="images of each class of an episode")
    episode_tasks: Literal["all", "one", "in_turn"] = Field(
        default="all",
        description="an episode is drawn from all tasks, or from one; in_turn: from one, and each epoch another task "
        "is left out: its episodes train the mapping net alone, the others everything else",
    )
    episode_temperature: float = Field(default=0.1, gt=0, description="softmax temperature of the k-NN loss")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")
    clip_norm: float | None = Field(default=1.0, gt=0, description="clip the gradient's norm to this (null: do not)")
    accumulate: int = Field(default=1, ge=1, description="micro-batches an optimizer step")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 autocast on GPUs that have it, else float32"
    )
    channels_last: bool = Field(default=True, description="channels_last memory format on GPUs")
    kernel: Literal["auto", "plain", "fused"] = Field(
        default="auto",
        description="train adapted convolutions, and the batch norm, sum and ReLU behind them, as one operation "
        "(fused) or as several (plain); auto: fused in bfloat16 on GPUs",
    )
    activation_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass; nothing is fused then"
    )
    compile: bool = Field(default=False, description="torch.compile the training step's forward")
    cuda_graph: bool | None = Field(
        default=None,
        description="replay the step's forward and backward as CUDA graphs, so that a GPU does not wait for the CPU "
        "(default: where convolutions are fused, but not with accumulate > 1, activation_checkpointing or "
        "seed_granularity task)",
    )
    random_seed: int = Field(
        default=0, ge=0, lt=2**32, description="number behind every random choice; runs that differ in it are repeats"
    )
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="optimizer steps between checkpoints (default: one an epoch)"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="checkpoints kept")


@dataclass(frozen=True, config=_STRICT)
class EvaluateConfig:
    """k-NN accuracy: train split as gallery, val or test split as queries."""

    knn: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(5, 10), min_length=1, description="numbers of neighbours K"
    )
    knn_metric: Literal["cosine", "l2"] = Field(default="cosine", description="distance")
    knn_temperature: float = Field(default=0.07, gt=0, description="softmax temperature of the weighted vote")
    validate_every: int = Field(default=1, ge=0, description="epochs between validations (0: never)")
    shuffled_seeds: bool = Field(
        default=False, description="test also with each image given another image's seed: a control"
    )
    evaluation_batch_size: int = Field(default=256, ge=1, description="images a worker embeds at a time")


@dataclass(frozen=True, config=_STRICT)
class ClusterConfig:
    """Where it runs."""

    workers: int = Field(default=2, ge=0, description="Ray Train workers; 0: in this process, without Ray")
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="GPUs a worker (default: 1 if there are enough GPUs, else 0)"
    )
    cpus_per_worker: float = Field(default=1.0, gt=0, description="CPUs a worker")
    retries: int = Field(default=2, ge=0, description="restarts after a lost worker, from the last checkpoint")
    ray_address: str | None = Field(
        default=None,
        description="a cluster to join ('auto', or an address); default: the job's own cluster, else a local Ray",
    )
    output: Place = Field(
        default="runs",
        validate_default=True,
        description="folder below which every run gets its own (default: runs)",
    )
    storage_path: Place | None = Field(
        default=None,
        description="where Ray keeps checkpoints: a folder or URI that all nodes reach (default: output)",
    )


@dataclass(frozen=True, config=_STRICT)
class TrackingConfig:
    """What MLflow is told."""

    tracking_uri: TrackingPlace = Field(
        default="default",
        description="MLflow tracking URI, or none (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )
    experiment: str = Field(default="metalora", description="MLflow experiment")
    run_name: str | None = Field(default=None, description="name of the run and of its folder (default: made up)")
    log_model: bool = Field(default=True, description="log the trained model as an MLflow model too")
