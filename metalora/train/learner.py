"""The learner, which is all that the loop knows of what it trains, and the learner of an adapter.

Shapes: B images of a micro-batch on this rank, D features, F extractor features, C classes.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from metalora.adapters.initializers import INITIALIZERS, Initializer, fill_layers
from metalora.config import Config
from metalora.data.augmentations import Mixture
from metalora.data.augmented import Augmented
from metalora.data.balance import class_weights
from metalora.data.dataset import Batch
from metalora.data.table import Table
from metalora.errors import UserError
from metalora.group import Group
from metalora.models.inputs import Inputs
from metalora.models.model import MetaLoRAModel, Trainable
from metalora.train.calibrate import weight_gradients
from metalora.train.evaluator import Evaluator
from metalora.train.feed import build_feed
from metalora.train.kept import Shared
from metalora.train.objectives import OBJECTIVES, Draw
from metalora.train.reporter import Reporter, Write
from metalora.train.results import has_results
from metalora.train.resume import State, comparable, extended, networks, read_resumable


class Seen(NamedTuple):
    """One micro-batch after its forward.

    Attributes:
        losses: (B,) loss of each sample, with gradients.
        domains: (B,) task of each sample, on the CPU.
        labels: (B,) label of each sample.
        features: (B, D) features of the trained network, if it has any.
        scores: (B, C) scores of the trained network, if it has any.
    """

    losses: Tensor
    domains: Tensor
    labels: Tensor | None = None
    features: Tensor | None = None
    scores: Tensor | None = None


class Learner(Protocol):
    """The interface of what the loop trains; it need not be a MetaLoRA model, nor take images.

    Attributes:
        tasks: The trained tasks, by number.
        task_names: Names of all tasks, for messages.
        one_task: Whether each step has images of one task only.
        steps_per_epoch: Optimizer steps per epoch.
        speedups: How it is computed, reported as metrics; set by `module`.
    """

    tasks: Sequence[int]
    task_names: Sequence[str]
    one_task: bool
    steps_per_epoch: int
    speedups: Mapping[str, float]

    def module(self) -> nn.Module:
        """Make the module that DDP wraps; all its parameters must take part in every forward. Called once."""

    def trainable(self) -> Iterable[Trainable]:
        """Return the trained parameters, always in the same order."""

    def scales(self) -> Mapping[str, float]:
        """Return factors of the learning rate by part of the model; other parts have the factor 1."""

    def prepare(self, begins: bool) -> None:
        """Get ready for the first step; ``begins`` is False for a training that is resumed."""

    def batches(self, epoch: int, step: int) -> Iterator[Any]:
        """Set the train mode, and yield this rank's micro-batches of an epoch from optimizer step ``step`` of it on."""

    def losses(self, module: nn.Module, batch: Any) -> Seen:
        """Compute the losses of a micro-batch with ``module``, the wrapped result of `module`."""

    def agree(self) -> None:
        """Make values that training changes without gradients, such as statistics, equal on all ranks."""

    def validate(self) -> Mapping[str, float]:
        """Validate, and return the metrics; empty on ranks other than 0."""

    def test(self) -> tuple[Mapping[str, float], Write]:
        """Test, and return the metrics and a function that writes the results into a folder; on rank 0."""

    def read(self, folder: Path) -> State:
        """Read the state of a checkpoint.

        Raises:
            UserError: the checkpoint cannot be read, or belongs to another training.
        """

    def finished(self, folder: Path, state: State) -> bool:
        """Tell whether a checkpoint holds the results of `test`, and this training is to be no longer than that."""

    def state(self) -> dict[str, Any]:
        """Return the learner's part of a checkpoint."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state`."""


class Classifier(nn.Module):
    """The adapted network and its head, which DDP wraps; the extractor stays outside."""

    def __init__(self, model: MetaLoRAModel) -> None:
        super().__init__()
        if model.head is None:
            raise UserError("training needs a model with labels")
        self.network = model.network
        self.head = model.head

    def forward(self, x: Tensor, condition: Tensor | None = None, task: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W), extractor features (B, F) and tasks (B,) to features (B, D) and scores (B, C)."""
        features = self.network(x, condition, task)
        return features, self.head(features)


class AdapterLearner:
    """Learns a MetaLoRA model on a table; it decodes and computes nothing before `module` or `prepare`.

    Args:
        config: All settings.
        model: The model, on the group's device and with a head.
        table: The data.
        inputs: The preprocessing of the backbone's inputs.
        group: The group of ranks.
        reporter: Gets the progress of computations without gradients.
        loader_workers: Decoding processes of this rank.
        shared: Results that were computed once for several trainings.
        graphable: Whether the callbacks allow steps to be replayed as CUDA graphs.
    """

    def __init__(
        self,
        config: Config,
        model: MetaLoRAModel,
        table: Table,
        inputs: Inputs,
        group: Group,
        reporter: Reporter,
        loader_workers: int = 0,
        shared: Shared | None = None,
        graphable: bool = True,
    ) -> None:
        self.config = config
        self.model = model
        self.table = table
        self.group = group
        self.objective = OBJECTIVES.make(config.train.objective)
        self.feed = build_feed(config, table, inputs, group, reporter, loader_workers, shared, graphable)
        self.execution = self.feed.execution
        self.evaluator = Evaluator(config, model, table, self.feed, shared)
        rows = table.rows("train")
        draw = Draw(
            config.data.batch_size,
            config.train.random_seed,
            config.data.domain_sampling,
            config.data.class_sampling,
            config.train.accumulate,
            group.rank,
            group.world,
        )
        balanced = config.train.class_weights == "balanced"
        weights = class_weights(table.label[rows], table.domain[rows]) if balanced else None
        self.weights = None if weights is None else torch.from_numpy(weights).to(group.device)
        self._check_mixtures()
        self.sampler = self.objective.sampler(table.label[rows], table.domain[rows], draw)
        self.tasks: Sequence[int] = np.unique(table.domain[rows]).tolist()
        self.task_names: Sequence[str] = table.domains
        self.one_task = self.objective.one_task or len(self.tasks) == 1
        self.steps_per_epoch = self.sampler.steps
        self.speedups: Mapping[str, float] = {}

    def _check_mixtures(self) -> None:
        methods = () if self.feed.augment is None else self.feed.augment.methods
        mixtures = [one.name for one in methods if isinstance(one, Mixture)]
        if mixtures and not self.objective.mixes:
            raise UserError(f"--augment {mixtures[0]} does not go with --objective {self.objective.name}, which needs "
                            "one label for each image")  # fmt: skip

    def module(self) -> nn.Module:
        """Make the module of network and head, fused, compiled or captured. See `Learner.module`."""
        count = self.config.data.batch_size // self.group.world
        module = self.execution.prepare(Classifier(self.model), self.model, self.feed.example, count)
        self.speedups = self.execution.speedups
        return module

    def trainable(self) -> list[Trainable]:
        """Return the parameters of adapters, saved modules, mapping net and head. See `Learner.trainable`."""
        return list(self.model.trained())

    def scales(self) -> Mapping[str, float]:
        """Return the mapping net's factor: at the full rate the generator is unstable. See `Learner.scales`."""
        return {"mapping": self.config.mapping.mapping_lr_scale}

    def prepare(self, begins: bool) -> None:
        """Decode the images to keep, and standardise the extractor's features. See `Learner.prepare`."""
        self.feed.keep(self.config.data.keep_images * 2**30)
        self.evaluator.prepare()
        initializer = INITIALIZERS.make(self.config.adapter.initializer)
        if begins and self.config.adapter.init_adapter is None and initializer.needs == "gradients":
            self._initialize(initializer)

    def _initialize(self, initializer: Initializer) -> None:
        """Measure what the initializer needs on the first batches, and let it fill the factors, equal on all ranks."""
        classifier = Classifier(self.model)
        self.sampler.set_position(0, 0)
        first = itertools.islice(self.feed.train_batches(self.sampler), initializer.batches)
        facts = weight_gradients(self.model, first, lambda b: self.losses(classifier, b).losses.mean(), self.group)
        fill_layers(self.model.layers, initializer, facts, self.config.train.random_seed)
        for layer in self.model.layers.values():
            for tensor in layer.factors.state_dict().values():
                self.group.take_first(tensor)

    def batches(self, epoch: int, step: int) -> Iterator[Batch | Augmented]:
        """Yield the micro-batches of the objective's sampler. See `Learner.batches`."""
        self.model.train()
        self.sampler.set_position(epoch, step)
        return self.feed.train_batches(self.sampler)

    def losses(self, module: nn.Module, batch: Batch | Augmented) -> Seen:
        """Compute the objective's losses of images. See `Learner.losses`.

        The seed of an image that is changed at random is that of the image itself: what tells its task is not changed,
        and features that are cached stay true.
        """
        changed = batch if isinstance(batch, Augmented) else None
        batch = batch.batch if isinstance(batch, Augmented) else batch
        images = self.feed.prepare(batch.codes)
        plain = self.feed.prepare(changed.plain) if changed is not None and changed.plain.numel() else images
        condition = self.evaluator.condition(plain, batch.rows)
        by_task = self.config.mapping.seed_granularity == "task"
        with self.execution.autocast():
            inputs = images, condition, batch.domains.to(self.group.device) if by_task else None
            features, scores = module(*(tensor for tensor in inputs if tensor is not None))
        labels = batch.labels.to(self.group.device, non_blocking=True)
        losses = self._losses(features, scores, labels, batch.domains)
        if changed is not None and bool((changed.shares < 1).any()):  # on the CPU: nothing waits
            shares, others = (t.to(self.group.device, non_blocking=True) for t in (changed.shares, changed.others))
            losses = shares * losses + (1 - shares) * self._losses(features, scores, others, batch.domains)
        return Seen(losses, batch.domains, labels, features, scores)

    def _losses(self, features: Tensor, scores: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        losses = self.objective.losses(features, scores, labels)
        return losses if self.weights is None else losses * self.weights[domains.to(labels.device), labels]

    def agree(self) -> None:
        """Average the statistics of trained batch norms over the ranks, which DDP does not. See `Learner.agree`."""
        trained = self.model.trainable()
        for name, buffer in self.model.adapter_state().items():
            if name not in trained and buffer.is_floating_point():
                buffer.copy_(self.group.mean(buffer))

    def validate(self) -> Mapping[str, float]:
        """Compute loss and accuracies on the validation split, if there is one. See `Learner.validate`."""
        return self.evaluator.validate()

    def test(self) -> tuple[Mapping[str, float], Write]:
        """Compare adapted and original features on the test split. See `Learner.test`."""
        return self.evaluator.test()

    def read(self, folder: Path) -> State:
        """Read a checkpoint of the same settings, data and networks. See `Learner.read`."""
        return read_resumable(folder, self.config, self.table, self.model)

    def finished(self, folder: Path, state: State) -> bool:
        """Tell whether the training of a checkpoint has ended. See `Learner.finished`."""
        return has_results(folder) and not extended(state, self.config)

    def state(self) -> dict[str, Any]:
        """Return the adapter, and the settings, data and networks of this training. See `Learner.state`."""
        return {
            "model": self.model.adapter_state(),
            "settings": comparable(self.config),
            "data": self.table.fingerprint,
            "networks": networks(self.model),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load the adapter. See `Learner.load_state`."""
        self.model.load_adapter_state(state["model"])
