"""The sections on how to train, evaluate, run and track."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from metalora.config.facts import fixed, setting
from metalora.config.sections import Place, TrackingPlace
from metalora.registry import STRICT, Choice, Method, Methods


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Optimization."""

    epochs: int = setting(
        default=8,
        ge=1,
        description="passes over the train split; a run that is resumed can be given more",
        extends=True,
        words=("num_epochs", "n_epochs", "max_epochs", "num_train_epochs"),
    )
    lr: float = setting(
        default=6e-3, gt=0, description="peak learning rate of adapter and head", words=("learning_rate",)
    )
    optimizer: Method = setting(default=Choice("adamw"), description="method that turns gradients into updates")
    warmup_steps: int = setting(
        default=20, ge=0, description="optimizer steps of linear warm-up, before the cosine", words=("warmup",)
    )
    objective: Method = setting(default=Choice("classification"), description="the loss of each image")
    class_weights: Literal["none", "balanced"] = setting(
        default="none",
        description="weight of each image's loss; balanced: images of the domain / (its classes x images of the class)",
        words=("class_weight", "pos_weight", "loss_weights"),
    )
    augment: Methods = setting(
        default=(),
        description="random changes of the train images, in this order",
        words=("augmentation", "augmentations", "auto_augment", "transforms", "aug"),
    )
    callbacks: Methods = setting(default=(), description="methods that act around each optimizer step")
    clip_norm: float | None = setting(
        default=1.0,
        gt=0,
        description="largest norm of the gradient, which is clipped to it (null: no clipping)",
        words=("max_grad_norm", "gradient_clip_val"),
    )
    accumulate: int = setting(
        default=1,
        ge=1,
        description="micro-batches per optimizer step",
        graph_needs=1,
        words=("gradient_accumulation_steps", "accumulate_grad_batches"),
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        default="auto",
        description="precision of the training; auto: bfloat16 autocast on GPUs that have it, else float32",
        words=("dtype", "fp16", "bf16", "amp", "mixed_precision"),
    )
    channels_last: bool = setting(default=True, description="channels_last memory format on GPUs", free=True)
    kernel: Literal["auto", "plain", "fused"] = setting(
        default="auto",
        description="train adapted convolutions, and the batch norm, sum and ReLU after them, as one operation "
        "(fused) or as several (plain); auto: fused in bfloat16 on GPUs",
        free=True,
    )
    activation_checkpointing: bool = setting(
        default=False,
        description="save memory by recomputing activations in the backward pass; nothing is fused then",
        free=True,
        graph_needs=False,
        words=("gradient_checkpointing",),
    )
    compile: bool = setting(default=False, description="torch.compile the training step's forward", free=True)
    cuda_graph: bool | None = setting(
        default=None,
        description="replay the step's forward and backward as CUDA graphs, so that a GPU does not wait for the CPU "
        "(default: where convolutions are fused, but not with accumulate > 1, activation_checkpointing or "
        "seed_granularity task)",
        free=True,
    )
    random_seed: int = setting(
        default=0,
        ge=0,
        lt=2**32,
        description="number that every random choice depends on; runs that differ only in it are repeats",
        searched=False,
        words=("random_state", "manual_seed"),
    )
    checkpoint_every: int | None = setting(
        default=None, ge=1, description="optimizer steps between checkpoints (default: one per epoch)", free=True
    )
    keep: Literal["last", "best"] = setting(
        default="last",
        description="weights to test and save: those after the last step, or at the validation with the best monitor",
        words=("load_best_model_at_end", "save_best_only"),
    )
    monitor: str | None = setting(
        default=None,
        description="metric of the validations that keep best and patience go by: val/accuracy, val/loss, val/knn5, "
        "val/knn5/DOMAIN (default: val/knn at the largest K)",
        words=("metric_for_best_model",),
    )
    patience: int | None = setting(
        default=None,
        ge=1,
        description="end the training after so many validations without a better monitor (default: never)",
        extends=True,
        words=("early_stopping_patience", "early_stopping"),
    )
    keep_checkpoints: int = setting(default=2, ge=1, description="number of checkpoints to keep", free=True)


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig:
    """How accuracy is measured: by k-NN, with the train split as gallery and the val or test split as queries."""

    knn: tuple[Annotated[int, Field(ge=1)], ...] = fixed(
        default=(5, 10), min_length=1, description="numbers of neighbours K", words=("k",)
    )
    knn_metric: Literal["cosine", "l2"] = fixed(default="cosine", description="distance")
    knn_temperature: float = fixed(default=0.07, gt=0, description="softmax temperature of the weighted vote")
    validate_every: int = fixed(default=1, ge=0, description="epochs between validations (0: never)")
    shuffled_seeds: bool = fixed(
        default=False, description="as a control, test also with each image given the seed of another image"
    )
    evaluation_batch_size: int = fixed(default=256, ge=1, description="images that each worker embeds at a time")


@dataclass(frozen=True, config=STRICT)
class ClusterConfig:
    """Where the training runs."""

    workers: int = fixed(
        default=2,
        ge=0,
        description="Ray Train workers; 0: in this process, without Ray",
        words=("num_workers", "num_processes", "nproc_per_node"),
    )
    gpus_per_worker: float | None = fixed(
        default=None,
        ge=0,
        description="GPUs per worker (default: 1 if there are enough GPUs, else 0)",
        words=("gpus", "num_gpus", "devices"),
    )
    cpus_per_worker: float = fixed(default=1.0, gt=0, description="CPUs per worker")
    retries: int = fixed(
        default=2,
        ge=0,
        description="most restarts from the last checkpoint, after a worker was lost",
        words=("max_failures", "max_restarts"),
    )
    ray_address: str | None = fixed(
        default=None,
        description="Ray cluster to join ('auto', or an address); default: the job's own cluster, else a local Ray",
    )
    output: Place = fixed(
        default="runs",
        validate_default=True,
        description="folder in which every run gets a folder of its own (default: runs)",
        words=("output_dir", "output_folder", "save_dir"),
    )
    storage_path: Place | None = fixed(
        default=None, description="folder or URI for Ray's checkpoints, reachable by all nodes (default: output)"
    )


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """What is sent to MLflow."""

    tracking_uri: TrackingPlace = fixed(
        default="default",
        description="MLflow tracking URI, or none (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
        words=("mlflow_uri",),
    )
    experiment: str = fixed(default="metalora", description="MLflow experiment")
    run_name: str | None = fixed(
        default=None,
        description="name of the run and of its folder (default: a new name)",
        words=("name", "experiment_name"),
    )
    log_model: bool = fixed(default=True, description="also log the trained model as an MLflow model")
