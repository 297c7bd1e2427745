"""``metalora bench memory``: the largest batch that a GPU trains on, by network and method."""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from metalora.adapters.formats import FORMATS
from metalora.errors import UserError
from pipelines.backend.device import this_device
from pipelines.bench.common import Result, Size, publish, read_options, write
from pipelines.bench.methods import NETWORKS, Network, build, check_names

METHODS = (
    *("floor", "full", "peft"),
    *(f"{format}+{kernel}" for format in FORMATS for kernel in ("plain", "fused", "plain+checkpointed", "fused+late")),
)
SIZES = {
    "rank": Size("channels of an update: tr has rank sqrt(R), multi_lora R / 4", 16, 16),
    "batch": Size("images of the first step, whose memory tells where to look for the largest", 32, 64),
    "granule": Size("step between the batch sizes that are tried, in images", 32, 16),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora bench memory``.

    The step is the eager step of ``bench step``. The largest batch is the largest multiple of the granule with which
    two steps ran, while one granule more ran out of memory.

    Raises:
        UserError: there is no GPU, or a network or method is unknown.
    """
    options = read_options("memory", "Find the largest batch of a training step.", SIZES, arguments, _add_options)
    models = options.models or (["resnet18_small"] if options.small else ["resnet50"])
    check_names(models, options.methods, METHODS)
    device = this_device()
    if device.type != "cuda":
        raise UserError("memory is measured on a GPU, and there is none")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # no batch fails for want of one piece
    rows: list[dict[str, Any]] = []
    for model in models:
        for method in options.methods:
            rows.append(_row(NETWORKS[model], method, options, device))
            write(_result(rows, options), options)  # should a later method fail
    publish(_result(rows, options), options)


def _result(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> Result:
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Result(
        "memory",
        f"The largest batch of one eager training step on a GPU of {total:.1f} GiB, in steps of {options.granule} "
        "images, and the memory per additional image. checkpointed: the blocks' activations are recomputed; late: "
        "only the last stage is adapted, and no graph is kept of the layers before it.",
        "gradients of all activations from the stem's output on, training nothing.",
        rows,
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", help=f"networks, of {', '.join(NETWORKS)} (default: resnet50)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"of {', '.join(METHODS)} (default: all)")


def _row(network: Network, method: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    step = build(network, method, options.rank, "eager", options.batch, device)

    def peak(batch: int) -> float | None:
        """Return the GiB in use while two steps run, or None if there are not as many."""
        try:
            step.resize(batch)
            torch.cuda.reset_peak_memory_stats()
            step.run()
            step.run()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / 2**30
        except torch.OutOfMemoryError:
            return None
        finally:
            gc.collect()
            torch.cuda.empty_cache()

    small, double = peak(options.batch), peak(2 * options.batch)
    if small is None or double is None:
        raise UserError(f"--batch {options.batch}: {method} does not fit twice as many images: start with fewer")
    each = (double - small) / options.batch
    room = (torch.cuda.mem_get_info()[0] + torch.cuda.memory_allocated()) / 2**30
    guess = int(options.batch + (room - small) / each)
    largest = largest_batch(lambda batch: peak(batch) is not None, guess, options.granule)
    print(f"{network.name}, {method}: {largest} images", file=sys.stderr, flush=True)
    return {"model": network.name, "method": method, "largest batch": largest, "MiB per image": 1024 * each}


def largest_batch(fits: Callable[[int], bool], guess: int, granule: int) -> int:
    """Return the largest multiple of a granule that fits; 0 if none does.

    Args:
        fits: Tells whether a batch size fits; if one fits, all smaller ones do.
        guess: Batch size to begin with; a good guess means fewer trials.
        granule: Step between batch sizes.
    """
    good, bad, reach = 0, 0, 1  # in granules; 0: none known
    trial = max(1, guess // granule)
    while bad - good != 1:
        if fits(trial * granule):
            good = trial
        else:
            bad = trial
        if not bad:
            trial = good + reach
        else:
            trial = (good + bad) // 2 if good else max(1, bad - reach)
        reach *= 2
    return good * granule
