"""Every setting, in frozen dataclasses that are checked when made and never mutated.

A setting's name is unique over all sections, so that on the command line ``--rank 8`` is
``adapter.rank`` of the YAML file. Precedence, lowest first: defaults, ``--config`` file, command line.
Only builders (`metalora.build`, `pipelines`) read these; the modules they build take plain arguments.
A relative path becomes absolute when a config is made, so where the user stands: workers stand elsewhere.
"""

import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from metalora.errors import UserError
from metalora.places import absolute_data, absolute_place, absolute_tracking, absolute_weights
from metalora.reading import check_form, describe_error, gate, short
from metalora.redact import is_redacted, redact_settings
from metalora.registry import nearest

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
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of every generator")
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


@dataclass(frozen=True, config=_STRICT)
class Config:
    """All sections. `Config()` is the embedded default."""

    backbone: BackboneConfig = Field(default_factory=BackboneConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    mapping: MappingConfig = Field(default_factory=MappingConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        pieces = max(1, self.cluster.workers) * self.train.accumulate
        if self.data.batch_size % pieces:
            raise ValueError(f"batch_size {self.data.batch_size} must be a multiple of workers x accumulate = {pieces}")
        if self.data.val_fraction + self.data.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must leave images to train on, so be below 1")
        if self.train.kernel == "fused" and self.train.activation_checkpointing:
            raise ValueError(
                "kernel fused does not go with activation_checkpointing: what is recomputed are the network's own "
                "blocks, and a fused training does not run these"
            )
        if self.train.cuda_graph and self.graph_obstacles:
            raise ValueError(f"cuda_graph does not go with {', '.join(self.graph_obstacles)}")
        both = sorted(set(self.data.exclude_domains) & set(self.data.holdout_domains))
        if both:
            raise ValueError(f"domains are left out or held out, not both: {', '.join(both)}")

    @property
    def graph_obstacles(self) -> list[str]:
        """The settings with which a step cannot be replayed as CUDA graphs."""
        obstacles = {
            "accumulate > 1": self.train.accumulate > 1,
            "activation_checkpointing": self.train.activation_checkpointing,
            "seed_granularity task": self.mapping.seed_granularity == "task",
        }
        return [name for name, met in obstacles.items() if met]


SECTIONS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Config)}


def setting_sections() -> dict[str, str]:
    """Map each setting's name to its section."""
    return {
        field.name: section for section, section_type in SECTIONS.items() for field in dataclasses.fields(section_type)
    }


def place_settings() -> Iterator[tuple[str, str]]:
    """Yield section and name of every setting that may be a path."""
    for section, kind in SECTIONS.items():
        for field in dataclasses.fields(kind):
            if {field.type, *get_args(field.type)} & set(PLACES):
                yield section, field.name


def from_dict(values: Mapping[str, Any]) -> Config:
    """Make a checked `Config` from ``{section: {setting: value}}``; what is missing takes its default.

    Raises:
        UserError: an unknown section or setting (the nearest valid name is given), or a value that
            is not accepted.
    """
    _check_names(values)
    try:
        return TypeAdapter(Config).validate_python(dict(values))
    except ValidationError as error:
        raise UserError("; ".join(describe_error(e) for e in error.errors())) from None


def _check_names(values: Mapping[str, Any]) -> None:
    known = setting_sections()
    for section, settings in values.items():
        if section not in SECTIONS:
            hint = f", it belongs in section {known[section]!r}" if section in known else nearest(section, SECTIONS)
            raise UserError(f"unknown section {short(section)}{hint} (sections: {', '.join(SECTIONS)})")
        if not isinstance(settings, Mapping):
            raise UserError(f"section {section!r} must hold settings, got {short(settings)}")
        names = [field.name for field in dataclasses.fields(SECTIONS[section])]
        for name in settings:
            if name not in names:
                hint = f", it belongs in section {known[name]!r}" if name in known else nearest(name, known)
                raise UserError(f"unknown setting {section}.{name[:80]}{hint}")


def check_file(values: Mapping[str, Any], what: str) -> None:
    """Check the settings of a file each by itself, so that an error names the file; `from_dict` checks the rest.

    Args:
        values: ``{section: {setting: value}}``. Values that were recorded without their secrets are left out, since
            they must be given anew.
        what: What error messages call the file.

    Raises:
        UserError: an unknown section or setting, or a value that is not accepted.
    """
    with gate(what):
        _check_names(values)
    for section, settings in values.items():
        known = {n: value for n, value in settings.items() if not (isinstance(value, str) and is_redacted(value))}
        kind: Any = SECTIONS[section]
        check_form({section: known}, dict[str, kind], what)


def to_dict(config: Config) -> dict[str, Any]:
    """Return ``{section: {setting: value}}`` of plain values; `from_dict` inverts it."""
    plain: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return plain


def to_yaml(config: Config) -> str:
    """Return the config as the YAML text that ``--config`` reads, without the secrets of its URIs."""
    return yaml.safe_dump(redact_settings(to_dict(config)), sort_keys=False)
