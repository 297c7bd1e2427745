"""The group of processes that train together; a group of one needs no process group."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Group:
    """This process's place in the group of processes that train together.

    Attributes:
        device: Device of this process.
        rank: Number of this process, from 0.
        world: Number of processes.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @staticmethod
    def current(device: torch.device) -> "Group":
        """Return the group of ``torch.distributed``'s process group, or a group of one."""
        if dist.is_available() and dist.is_initialized():
            return Group(device, dist.get_rank(), dist.get_world_size())
        return Group(device)

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a module in DDP; all its parameters must take part in every forward.

        Buffers are not broadcast: frozen ones never change, and a trainer averages those of trained modules.
        """
        if self.world == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        # torch 2.14 renamed it
        known = inspect.signature(DistributedDataParallel).parameters
        sync: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True, **sync)

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over the ranks."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values / self.world

    def take_first(self, tensor: Tensor) -> None:
        """Copy a tensor's values from rank 0, in place."""
        if self.world > 1:
            dist.broadcast(tensor, 0)

    def gather_rows(self, rows: Tensor | None) -> Tensor:
        """Concatenate tensors (n_rank, ...) of all ranks, in rank order, on the CPU; None where a rank has no rows."""
        if self.world == 1:
            assert rows is not None
            return rows.cpu()
        shapes = self.gather_objects(None if rows is None else (tuple(rows.shape), rows.dtype))
        shape, dtype = next(known for known in shapes if known is not None)
        counts = [0 if known is None else known[0][0] for known in shapes]
        padded = torch.zeros(max(counts), *shape[1:], dtype=dtype, device=self.device)
        if rows is not None:
            padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count].cpu() for part, count in zip(parts, counts, strict=True)])

    def gather_objects(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


@contextmanager
def synchronised(module: nn.Module, now: bool) -> Iterator[None]:
    """Let DDP exchange gradients in the backward pass of this block (``now``), or only collect them."""
    if isinstance(module, DistributedDataParallel) and not now:
        with module.no_sync():
            yield
    else:
        yield
