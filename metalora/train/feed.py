"""From rows of a table to what the networks take, on the device.

Shapes: N samples of the table, B samples of a batch; codes are what `Inputs.encode` makes: (3, H, W) uint8 of an image.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from metalora.adapters.formats import FORMATS
from metalora.config import Config
from metalora.data.augmentations import AUGMENTATIONS
from metalora.data.augmented import Augment, Augmented, AugmentedDataset, DrawnSampler
from metalora.data.dataset import Batch, KeptDataset, SampleDataset
from metalora.data.loaders import evaluation_loader, share_of, train_loader
from metalora.data.sampler import BatchSampler
from metalora.data.table import IntArray, Table
from metalora.errors import UserError
from metalora.evaluate.embed import embed
from metalora.group import Group
from metalora.models.inputs import Inputs
from metalora.train.execution import Execution
from metalora.train.kept import CodeArray, Shared
from metalora.train.reporter import Progress, Reporter

ROOM = 16  # what is kept on a GPU takes at most one part in so many of its free memory: other trainings may be there


class Feed:
    """Feeds a training from a table, decoding each sample when it is read, or once if all are kept.

    Args:
        table: The samples.
        inputs: What the backbone takes.
        group: The ranks.
        execution: The memory format.
        reporter: Told the progress.
        loader_workers: Decoding processes of this rank.
        batch_size: Samples that a rank evaluates at a time.
        shared: What has been computed for this and other trainings: the codes, perhaps.
        augment: How train images are changed; None: they are not.
    """

    def __init__(
        self,
        table: Table,
        inputs: Inputs,
        group: Group,
        execution: Execution,
        reporter: Reporter,
        loader_workers: int,
        batch_size: int,
        shared: Shared | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.table = table
        self.inputs = inputs
        self.group = group
        self.execution = execution
        self.reporter = reporter
        self.loader_workers = loader_workers
        self.batch_size = batch_size
        self.augment = augment
        self.codes: CodeArray | None = None
        self.resident: Tensor | None = None
        self._loader: DataLoader[Any] | None = None
        if shared is not None and shared.images is not None:
            self.use(shared.images)

    def keep(self, most: float = math.inf) -> None:
        """Decode every sample of the table once, each rank its share, and read them from memory from now on.

        Args:
            most: Bytes that they may take; if they take more, nothing is done.
        """
        if self.codes is not None or code_bytes(len(self.table), self.inputs) > most:
            return
        share = [batch.codes for batch in self._batches("decode images", np.arange(len(self.table)))]
        self.use(self.group.gather_rows(torch.cat(share) if share else None).numpy())

    def train_batches(self, sampler: BatchSampler) -> Iterator[Batch | Augmented]:
        """Yield the micro-batches of the train split that a sampler (always the same one) draws from its position."""
        rows = self.table.rows("train")
        if self.codes is not None and self.augment is None:
            return (self._kept(rows[positions]) for positions in sampler)
        if self._loader is None:  # its processes live as long as it does
            self._loader = self._train_loader(rows, sampler)
        return iter(self._loader)

    def _train_loader(self, rows: IntArray, sampler: BatchSampler) -> DataLoader[Any]:
        if self.augment is None:
            return train_loader(self._dataset(rows), sampler, self.loader_workers)
        base: SampleDataset | KeptDataset = self._dataset(rows)
        if self.codes is not None and not self.loader_workers:  # else each process would get a copy of them
            base = KeptDataset(self.table, rows, self.codes)
        size = self.inputs.example(1).shape[1:]
        dataset = AugmentedDataset(base, self.table.domain[rows], size, self.augment)
        return train_loader(dataset, DrawnSampler(sampler), self.loader_workers)

    def prepare(self, codes: Tensor) -> Tensor:
        """Bring codes (B, ...) to the device, in its memory format, and make of them what the networks take."""
        return self.inputs.prepare(self.execution.in_layout(codes.to(self.group.device, non_blocking=True)))

    def example(self, count: int) -> Tensor:
        """Return so many samples, as the networks take them, on the device."""
        return self.inputs.prepare(self.inputs.example(count).to(self.group.device))

    def embed(
        self, phase: str, rows: IntArray, function: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Apply a function of prepared samples (B, ...) and table rows (B,) to some rows; see `embed`."""
        return embed(
            lambda codes, batch_rows: function(self.prepare(codes), batch_rows), self._batches(phase, rows), self.group
        )

    def use(self, codes: CodeArray) -> None:
        """Read the samples of the whole table, (N, ...), from memory from now on."""
        self.codes = codes
        self.resident = _resident(codes, self.group.device)

    def _dataset(self, rows: IntArray) -> SampleDataset:
        return SampleDataset(self.table, rows, partial(self.inputs.encode, most=self.table.max_pixels))

    def _kept(self, rows: IntArray) -> Batch:
        """Return a batch of samples that are kept."""
        assert self.codes is not None
        at = torch.from_numpy(rows)
        if self.resident is not None:
            codes = self.resident[at.to(self.group.device, non_blocking=True)]
        else:
            codes = torch.from_numpy(self.codes[rows])
        label, domain = self.table.label[rows], self.table.domain[rows]
        return Batch(codes, torch.from_numpy(label), torch.from_numpy(domain), at)

    def _batches(self, phase: str, rows: IntArray) -> Iterator[Batch]:
        """Yield this rank's share of some rows, and report how far all ranks are."""
        count = 0
        for batch in self._share(rows):
            yield batch
            count += len(batch.rows)
            if self.group.first:
                self.reporter.progress(Progress(phase, min(count * self.group.world, len(rows)), len(rows)))

    def _share(self, rows: IntArray) -> Iterator[Batch]:
        if self.codes is None:
            dataset = self._dataset(rows)
            yield from evaluation_loader(
                dataset, self.batch_size, self.loader_workers, self.group.rank, self.group.world
            )
            return
        share = rows[share_of(len(rows), self.group.rank, self.group.world)]
        for start in range(0, len(share), self.batch_size):
            yield self._kept(share[start : start + self.batch_size])


def build_feed(
    config: Config,
    table: Table,
    inputs: Inputs,
    group: Group,
    reporter: Reporter,
    loader_workers: int,
    shared: Shared | None = None,
    graphable: bool = True,
) -> Feed:
    """Build a feed, and how it is computed, by settings.

    Args:
        config: All settings.
        table: As for `Feed`; the others likewise.
        inputs: What the backbone takes.
        group: The ranks.
        reporter: Told the progress.
        loader_workers: Decoding processes of this rank.
        shared: What has been computed for this and other trainings.
        graphable: Whether the callbacks let steps be replayed as CUDA graphs.
    """
    augment = _augment(config, inputs)
    obstacles = [*config.graph_obstacles, *([] if graphable else ["one of the callbacks"])]
    execution = Execution(config.train, group.device, obstacles)
    size = config.evaluate.evaluation_batch_size
    return Feed(table, inputs, group, execution, reporter, loader_workers, size, shared, augment)


def _augment(config: Config, inputs: Inputs) -> Augment | None:
    """Return how train images are changed, by settings; an extractor always sees them unchanged.

    Raises:
        UserError: the inputs are no images.
    """
    methods = tuple(AUGMENTATIONS.make(choice) for choice in config.train.augment)
    if not methods:
        return None
    example = inputs.example(1)
    if example.dim() != 4 or example.shape[1] != 3 or example.dtype != torch.uint8:
        raise UserError(f"augment {methods[0].name}: only images can be changed, and the backbone takes something else")
    seeded = FORMATS.make(config.adapter.format).seed == "generated"
    return Augment(methods, config.train.random_seed, plain=seeded and not config.mapping.cache_features)


def code_bytes(count: int, inputs: Inputs) -> int:
    """Return the bytes that the codes of so many samples take."""
    one = inputs.example(1)
    return count * one.numel() * one.element_size()


def _resident(codes: CodeArray, device: torch.device) -> Tensor | None:
    """Copy codes to a GPU that has room enough for several trainings' copies, so that no batch is copied there."""
    if device.type != "cuda" or codes.nbytes > torch.cuda.mem_get_info(device)[0] / ROOM:
        return None
    return torch.cat([torch.tensor(part, device=device) for part in np.array_split(codes, 64)])
