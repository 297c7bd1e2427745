"""The training loop. It knows torch.distributed, not Ray; a `Reporter` takes what it has to tell.

Shapes: B images of a micro-batch on this rank, D features, F extractor features, C classes.
"""

import itertools
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora.adapters.fused import refusal
from metalora.config import Config
from metalora.data.loaders import train_loader
from metalora.data.table import ImageTable
from metalora.errors import UserError
from metalora.evaluate.embed import Batch
from metalora.files import seal
from metalora.group import Group, synchronised
from metalora.models.inputs import Preprocessing
from metalora.models.model import MetaLoRAModel
from metalora.reading import gate
from metalora.train.activation_checkpointing import checkpoint_blocks
from metalora.train.batches import build_sampler, leaves_out
from metalora.train.checkpoint import generator_states, restore_generators, seed_everything, write_state
from metalora.train.evaluator import Evaluator, has_results
from metalora.train.kept import Shared
from metalora.train.objectives.episodic import knn_loss
from metalora.train.optim import build_optimizer, restore, warmup_cosine
from metalora.train.reporter import Progress, Reporter, Write
from metalora.train.resume import State, comparable, networks, read_resumable

LOG_EVERY = 10
_log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """The adapted network and its head: what DDP wraps. The extractor stays outside."""

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


class Trainer:
    """Trains a model on a table, on one rank of a group.

    Args:
        config: All settings.
        model: On the group's device, with a head.
        table: The data.
        preprocess: The backbone's.
        group: The ranks.
        reporter: Listens.
        loader_workers: Decoding processes of this rank.
        shared: What has been computed for this and other trainings.
    """

    def __init__(
        self,
        config: Config,
        model: MetaLoRAModel,
        table: ImageTable,
        preprocess: Preprocessing,
        group: Group,
        reporter: Reporter,
        loader_workers: int = 0,
        shared: Shared | None = None,
    ) -> None:
        self.config = config
        self.settings = config.train
        self.model = model
        self.table = table
        self.group = group
        self.reporter = reporter
        self.device = group.device
        self.step = 0
        self.loss_sum = torch.zeros((), device=self.device)
        self.loss_steps = 0
        self.started = False
        self.ways: dict[str, float] = {}  # what a training does to be faster, as metrics
        self.unverified: list[tuple[int, Tensor, list[tuple[Tensor, Tensor]]]] = []
        self.kept_step: int | None = None
        seed_everything(self.settings.random_seed + group.rank)

        self.evaluator = Evaluator(config, model, table, preprocess, group, reporter, loader_workers, shared)
        self.sampler = build_sampler(config, model, table, group)
        self.evaluator.keep_images(config.data.keep_images * 2**30)
        rows = table.rows("train")
        self.tasks = np.unique(table.domain[rows]).tolist()
        self.loader = train_loader(self.evaluator.dataset(rows), self.sampler, self.evaluator.loader_workers)
        self.steps_per_epoch = self.sampler.steps
        self.total_steps = self.steps_per_epoch * self.settings.epochs
        self.optimizer = build_optimizer(
            model.trainable().items(),
            self.settings.lr,
            config.mapping.mapping_lr_scale,
            self.settings.weight_decay,
        )
        self.schedule = warmup_cosine(self.optimizer, self.settings.warmup_steps, self.total_steps)
        self.classifier = self._prepare(Classifier(model))

    def _prepare(self, classifier: nn.Module) -> nn.Module:
        if self.settings.activation_checkpointing:
            checkpoint_blocks(self.model.network.backbone)
        if self.settings.channels_last and self.device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)
        fused = 0
        if self._fused():
            classifier.train()
            fused = self.model.network.fuse(self.model.backbone_identity["input_size"], self.evaluator.dtype)
            if not fused and self.settings.kernel == "fused":
                raise UserError(
                    "kernel fused: this network has nothing that can be fused; kernel auto trains it as it is"
                )
        if self.settings.compile:
            classifier = cast(nn.Module, torch.compile(classifier))
        graphed = self.settings.cuda_graph
        if graphed and self.device.type != "cuda":
            raise UserError(f"cuda_graph needs a GPU, and this training has none (device: {self.device.type})")
        if graphed is None:
            graphed = fused > 0 and self.device.type == "cuda" and not self.config.graph_obstacles
        if graphed:
            self._capture(classifier)
        self.ways = {"train/fused_convolutions": float(fused), "train/cuda_graph": float(graphed)}
        return self.group.wrap(classifier)

    def _fused(self) -> bool:
        """Whether to train with fused convolutions; in bfloat16 on GPUs is where they are known to be faster."""
        kernel = self.settings.kernel
        known = self.device.type == "cuda" and self.evaluator.dtype is torch.bfloat16
        if kernel == "plain" or (kernel == "auto" and (not known or self.settings.activation_checkpointing)):
            return False
        reason = refusal(self.device)
        if reason and kernel == "fused":
            raise UserError(f"kernel fused does not run here ({reason}); kernel plain does")
        if reason:
            _log.warning("training with kernel plain, as fused ones do not run here (%s)", reason)
        return reason is None

    def _capture(self, classifier: nn.Module) -> None:
        """Let the classifier, while training, replay one CUDA graph of its forward and one of its backward.

        Raises:
            UserError: its forward or backward waits for the GPU, or does something else that a graph cannot hold.
        """
        size = self.config.data.batch_size // self.group.world
        images = torch.zeros(size, *self.model.backbone_identity["input_size"], device=self.device)
        samples = [self.evaluator.in_layout(images)]
        if self.model.extractor is not None:
            samples.append(torch.zeros(size, self.model.spec.condition_size, device=self.device))
        classifier.train()
        before = {name: tensor.clone() for name, tensor in self.model.adapter_state().items()}
        try:
            with self.evaluator.autocast(cache=False):  # casts must be part of the graph
                torch.cuda.make_graphed_callables(classifier, tuple(samples))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"this network cannot be a CUDA graph ({reason}): train with --no-cuda-graph") from error
        self.model.load_adapter_state(before)  # batch norms that are trained have seen the samples
        # Gradients are accumulated on the capture's stream, for which autograd waits; torch warns of it since 2.10.
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)

    def fit(self, resume: Path | None = None) -> None:
        """Train to the end, evaluate on the test split, and hand the results to the reporter's last checkpoint.

        Args:
            resume: A checkpoint's folder to go on from; nothing is left to do if it has the results.

        Raises:
            UserError: the loss is not finite, or the checkpoint belongs to another training.
        """
        if resume is not None:
            state = read_resumable(resume, self.config, self.table, self.model)
            if has_results(resume):
                return
        self.evaluator.prepare()
        if resume is not None:
            self._restore(state, resume)
        while self.step < self.total_steps:
            self._epoch(self.step // self.steps_per_epoch)
        self._keep(self.evaluator.test(self.step))

    def _epoch(self, epoch: int) -> None:
        self.model.train()
        first = self.step % self.steps_per_epoch
        self.sampler.set_position(epoch, first)
        clock = Clock(self.config.data.batch_size)
        batches = iter(self.loader)
        for done in range(first + 1, self.steps_per_epoch + 1):
            self._train_step(itertools.islice(batches, self.settings.accumulate))
            if not self.started:
                self._report_start(clock)
            ends, due = done == self.steps_per_epoch, self._checkpoint_due()
            self._verify(leave=0 if ends else 1)
            if self.step % LOG_EVERY == 0 or ends or due:
                self._log(epoch, clock.rate(done - first))
            if ends or due:
                self._agree()
            if ends and self._validation_due(epoch):
                self.evaluator.validate(self.step)
            if due:
                self._keep()

    def _report_start(self, clock: "Clock") -> None:
        """Report how it is computed, and how long its first step took: it waits for decoders and compilers."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.started = True
        if self.group.first:
            seconds = time.monotonic() - clock.started
            self.reporter.metrics(self.step, {"train/first_step_seconds": seconds, **self.ways})

    def _train_step(self, batches: Iterable[Batch]) -> None:
        records = []
        for index, (images, labels, domains, rows) in enumerate(batches):
            with synchronised(self.classifier, now=index + 1 == self.settings.accumulate):
                losses = self._losses(images, labels, domains, rows)
                (losses.mean() / self.settings.accumulate).backward()
            records.append((losses.detach(), domains))
        if leaves_out(self.config):
            self._leave_out(int(records[0][1][0]))
        norm = nn.utils.clip_grad_norm_(self.model.trainable().values(), self.settings.clip_norm or math.inf)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss_sum += torch.stack([losses.mean() for losses, _ in records]).mean()
        self.loss_steps += 1
        self.unverified.append((self.step, norm, records))

    def _leave_out(self, task: int) -> None:
        """Let a step on the epoch's left-out task train the mapping net alone, and any other step everything else."""
        left_out = self.tasks[self.step // self.steps_per_epoch % len(self.tasks)]
        for name, parameter in self.model.trainable().items():
            if name.startswith("mapping.") != (task == left_out):
                parameter.grad = None

    def _losses(self, images: Tensor, labels: Tensor, domains: Tensor, rows: Tensor) -> Tensor:
        """Return the loss of each image, (B,): its cross-entropy and, in an episode, its k-NN loss."""
        images = self.evaluator.place(images, rows)
        condition = self.evaluator.condition(images, rows)
        by_task = self.config.mapping.seed_granularity == "task"
        with self.evaluator.autocast():
            inputs = images, condition, domains.to(self.device) if by_task else None
            features, scores = self.classifier(*(tensor for tensor in inputs if tensor is not None))
        labels = labels.to(self.device, non_blocking=True)
        smoothing = self.settings.label_smoothing
        losses = F.cross_entropy(scores.float(), labels, label_smoothing=smoothing, reduction="none")
        if self.settings.objective == "episodic":
            size = self.settings.episode_classes * self.settings.episode_images
            episodes = features.unflatten(0, (-1, size)), labels.unflatten(0, (-1, size))
            losses = losses + knn_loss(*episodes, self.settings.episode_temperature).flatten()
        return losses

    def _verify(self, leave: int = 0) -> None:
        """Stop if a step's gradient was not finite, looking at all steps but the last ``leave``.

        The norm is that of the summed gradient, so that all ranks stop at the same step. A step is looked at while
        the next one runs: reading its norm at once would leave the GPU idle.
        """
        while len(self.unverified) > leave:
            step, norm, records = self.unverified.pop(0)
            if bool(torch.isfinite(norm)):
                continue
            bad = [domains[~torch.isfinite(losses).cpu()] for losses, domains in records]
            met = sorted({int(d) for part in self.group.gather_objects(torch.cat(bad).tolist()) for d in part})
            where = "loss of task " + ", ".join(self.table.domains[d] for d in met) if met else "gradient"
            kept = f"step {self.kept_step}" if self.kept_step is not None else "none yet"
            raise UserError(f"the {where} is not finite at step {step}; last good checkpoint: {kept}")

    def _agree(self) -> None:
        """Average over the ranks what trained batch norms have measured, which DDP leaves to each."""
        trained = self.model.trainable()
        for name, buffer in self.model.adapter_state().items():
            if name not in trained and buffer.is_floating_point():
                buffer.copy_(self.group.mean(buffer))

    def _log(self, epoch: int, rate: float) -> None:
        loss = float(self.group.mean(self.loss_sum)) / self.loss_steps
        self.loss_sum.zero_()
        self.loss_steps = 0
        if self.group.first:
            lr = self.schedule.get_last_lr()[0]
            self.reporter.metrics(
                self.step, {"train/loss": loss, "train/images_per_second": rate, "train/learning_rate": float(lr)}
            )
            self.reporter.progress(
                Progress("train", self.step, self.total_steps, epoch + 1, self.settings.epochs, loss, rate)
            )

    def _checkpoint_due(self) -> bool:
        """The last step's checkpoint waits for the results."""
        due = self.step % (self.settings.checkpoint_every or self.steps_per_epoch) == 0
        return due and self.step < self.total_steps

    def _validation_due(self, epoch: int) -> bool:
        every = self.config.evaluate.validate_every
        return every > 0 and (epoch + 1) % every == 0

    def _keep(self, write_more: Write | None = None) -> None:
        """Checkpoint, with more files beside the state if told so; on every rank."""
        self._verify()
        generators = self.group.gather_objects(generator_states(self.device))

        def write(folder: Path) -> None:
            write_state(folder, self._state(generators))
            if write_more is not None:
                write_more(folder)
            seal(folder)

        self.reporter.checkpoint(self.step, write if self.group.first else None)
        self.kept_step = self.step

    def _state(self, generators: list[Any]) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.adapter_state(),
            "optimizer": self.optimizer.state_dict(),
            "generators": generators,
            "settings": comparable(self.config),
            "data": self.table.fingerprint,
            "networks": networks(self.model),
            "sealed": True,  # older code wrote no checksums
        }

    def _restore(self, state: State, folder: Path) -> None:
        with gate(f"checkpoint {folder}"):
            if state["step"] > self.total_steps:
                raise UserError(f"step {state['step']} is beyond the last one of this training, {self.total_steps}")
            self.model.load_adapter_state(state["model"])
            restore(self.optimizer, self.schedule, state["optimizer"], state["step"])
            self.step = self.kept_step = state["step"]
            if len(state["generators"]) == self.group.world:
                restore_generators(state["generators"][self.group.rank], self.device)
            else:  # another number of workers: no state to go on with, so a seed that no step before has used
                seed_everything(hash((self.settings.random_seed, self.step, self.group.rank)) % 2**63)


class Clock:
    """Images a second since it was made."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.started = time.monotonic()

    def rate(self, steps: int) -> float:
        """Return the mean rate after ``steps`` optimizer steps."""
        return steps * self.batch_size / max(1e-9, time.monotonic() - self.started)
