"""The slot through which a model's seeds reach its adapted layers."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Call(NamedTuple):
    """The values that the adapted layers read while one call of their model runs.

    Attributes:
        enabled: False while the adapters are switched off.
        seeds: (B, S), the seeds of all layers side by side; None without seeds.
        parts: The same seeds, split by layer; the key is where the layer's slice starts and stops.
        learns: Whether every adapter must get a gradient from this call.
    """

    enabled: bool = True
    seeds: Tensor | None = None
    parts: Mapping[tuple[int, int], Tensor] | None = None
    learns: bool = False


class _Again(NamedTuple):
    """A call whose layers a backward pass may run again.

    Attributes:
        backward: The backward pass, by autograd's number.
        call: The call.
        thread: The key of the thread that ran it, if known.
        first: Autograd's number of the call's first operation there: what came before is not the call's.
    """

    backward: int = -1
    call: Call = Call()
    thread: object = None
    first: int = 0


class _Thread(threading.local):
    """What a thread runs: a call, or layers of a call again within a backward pass."""

    def __init__(self) -> None:
        self.call = Call()  # in each thread's own dictionary from the start, which torch.compile looks at
        self.again = _Again()
        self.key = object()  # it is the thread's as long as anything refers to it: a number is given again


class SeedSlot:
    """Holds the seeds of one model for its adapted layers, since a backbone's forward takes no second argument.

    Every thread has its own seeds, so that calls of one model at the same time never see each other's. Activation
    checkpointing runs layers again within a backward pass, on GPUs in a thread of autograd's. There `remember` and
    `within` give them the seeds of the forward pass. Copies and pickles start empty: seeds belong to a call.

    Args:
        slices: The part of the seeds of each layer; together they cover the seeds, and no two overlap.
    """

    def __init__(self, slices: Iterable[slice] = ()) -> None:
        self.bounds = sorted({(one.start, one.stop) for one in slices})
        self._thread = _Thread()

    @property
    def call(self) -> Call:
        """The call whose values the layers in this thread read now."""
        backward = _backward()
        if backward == -1:
            return self._thread.call
        again = self._thread.again
        ours = again.backward == backward and torch._C._current_autograd_node()._sequence_nr() >= again.first
        return again.call if ours else Call()

    @property
    def seeds(self) -> Tensor | None:
        """The seeds of all layers, (B, S); None if there are none now."""
        return self.call.seeds

    @property
    def enabled(self) -> bool:
        """Whether the adapters are on."""
        return self.call.enabled

    def fill(self, seeds: Tensor | None, learns: bool = False) -> None:
        """Set the seeds of all layers, (B, S) or None, for this thread from now on."""
        parts = None
        if seeds is not None:
            # split once: the gradients of as many slices would be as many zeroed tensors of all seeds, and their sums
            split = seeds.split([stop - start for start, stop in self.bounds], dim=1)
            parts = dict(zip(self.bounds, split, strict=True))
        self._set(Call(self.enabled, seeds, parts, learns))

    @contextmanager
    def given(self, seeds: Tensor | None, learns: bool = False) -> Iterator[None]:
        """Set the seeds of all layers, (B, S) or None, for this thread within the block."""
        with self.within(self.call):
            self.fill(seeds, learns)
            yield

    @contextmanager
    def within(self, call: Call) -> Iterator[None]:
        """Let layers read the values of an earlier call, in this thread and within the block."""
        before = self.call
        self._set(call)
        try:
            yield
        finally:
            self._set(before)

    def remember(self, outputs: Any) -> None:
        """Let a backward pass that runs layers again find the present call, by the call's outputs.

        Autograd goes backwards through what a thread has computed. So in a backward pass through several calls, the
        output of each call comes before its layers, and after all layers of the later calls. Calls of several threads
        come mixed: then layers that need seeds find none.
        """
        if torch.compiler.is_compiling():  # a compiled backward pass has the seeds in its graph
            return
        call, origin, thread = self.call, self._thread.key, self._thread
        node = next((part.grad_fn for part in (call.parts or {}).values()), None)
        first = 0 if node is None else node._sequence_nr()

        def recall(gradient: Tensor) -> None:
            mixed = thread.again.backward == _backward() and thread.again.thread not in (None, origin)
            thread.again = _Again(_backward(), Call() if mixed else call, origin, first)

        for output in tree_leaves(outputs):
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(recall)

    def part(self, where: slice) -> Tensor:
        """Return the seeds of one slice, (B, its size).

        Raises:
            RuntimeError: there are no seeds.
        """
        parts = self.call.parts
        if not parts:
            raise RuntimeError(
                "no seed: call the model, not its backbone, so that its mapping net makes one"
                if _backward() == -1
                else "no seed to run a layer again with in this backward pass (activation checkpointing): "
                "the loss must depend on the model's outputs, and on those of one thread's calls"
            )
        return parts[where.start, where.stop]

    def _set(self, call: Call) -> None:
        backward = _backward()
        if backward == -1:
            self._thread.call = call
        else:
            self._thread.again = _Again(backward, call)

    def __reduce__(self) -> tuple[Any, ...]:
        return SeedSlot, ([slice(*bounds) for bounds in self.bounds],)


def _backward() -> int:
    """Return autograd's number of the backward pass in which this thread runs, or -1."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()
