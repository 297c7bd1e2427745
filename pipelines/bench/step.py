"""``metalora bench step``: a training step by network, method, rank and kernel, against full fine-tuning and PEFT."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from metalora.errors import UserError
from pipelines.backend.device import this_device
from pipelines.bench.common import Result, Size, Timing, positive, publish, read_options, timed, write
from pipelines.bench.methods import BASELINES, METHODS, NETWORKS, Captured, Network, Step, build, check_names

GRAPH = "+graph"
MODES = ("eager", f"eager{GRAPH}", "compiled", f"compiled{GRAPH}")
BURST = 5  # steps of a measurement on a GPU, back to back as in a training, where launches run ahead of the work
SIZES = {
    "batch": Size("images per step", 4, 256),
    "repeats": Size(f"measurements of each method (on GPUs of {BURST} steps in a row)", 2, 10),
    "warmup": Size("measurements of each method before those that count", 1, 2),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora bench step``.

    A step is forward, cross-entropy, backward and AdamW, in bfloat16 autocast and channels_last on GPUs; the
    extractor's features are given. The floor is the frozen network's forward and the gradients of all activations
    from the stem's output on, which every method that adapts all layers needs. All methods of a network, rank and mode
    run in one process and in turn. Modes: eager; compiled by torch.compile; either of them with +graph, replayed as one
    CUDA graph, so that launches cost nothing.

    Raises:
        UserError: a network or method is unknown, or the device does not have a mode.
    """
    options = read_options("step", "Time a training step.", SIZES, arguments, _add_options)
    # Methods with unlike memory needs take turns: without this, torch's blocks for one do not fit the next.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    models = options.models or (["resnet18_small"] if options.small else ["resnet50"])
    device = this_device()
    modes = options.modes or (
        MODES[:1] if options.small else [mode for mode in MODES if device.type == "cuda" or GRAPH not in mode]
    )
    if any(GRAPH in mode for mode in modes) and device.type != "cuda":
        raise UserError(f"--modes {' '.join(modes)}: CUDA graphs need a GPU")
    check_names(models, options.methods, METHODS)
    options.methods = ["floor"] * ("floor" not in options.methods) + options.methods
    rows: list[dict[str, Any]] = []
    with torch.cuda.stream(torch.cuda.Stream() if device.type == "cuda" else None):  # the default cannot be captured
        for model in models:
            for rank in options.ranks:
                done, found = rows, []
                for part in compare(NETWORKS[model], rank, modes, options, device):
                    found += part
                    rows = done + [{**row, **_best_ratios(row, found)} for row in found]
                    write(_result(rows, options), options)  # should a later mode fail
    publish(_result(rows, options), options)


def _result(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> Result:
    return Result(
        "step",
        f"One training step of {options.batch} images: median milliseconds, and ratios of images per second.",
        "forward and backward of the frozen network's activations from the stem's output on, training nothing.",
        rows,
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", help=f"networks, of {', '.join(NETWORKS)} (default: resnet50)")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        help=f"methods, of {', '.join(METHODS)} (default: all); floor, to which ratios refer, is always measured",
    )
    parser.add_argument("--ranks", nargs="+", type=positive, default=[16], metavar="R",
                        help="channels of an update: tr has the nearest square, multi_lora the multiple of 4 below "
                             "(default: 16)")  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: all that the device has; --small: eager")


def compare(
    network: Network, rank: int, modes: Sequence[str], options: argparse.Namespace, device: torch.device
) -> Iterator[list[dict[str, Any]]]:
    """Time all methods, and yield the table's rows mode by mode; a mode and its graphs share the built steps."""
    for mode in (MODES[0], MODES[2]):
        torch.compiler.reset()
        if not {mode, mode + GRAPH} & set(modes):
            continue
        steps = {name: build(network, name, rank, mode, options.batch, device) for name in options.methods}
        if mode in modes:
            yield _time(network, rank, mode, steps, options, device)
        if mode + GRAPH in modes:
            pool = torch.cuda.graph_pool_handle()
            captured = {name: replace(step, run=Captured(step.run, pool)) for name, step in steps.items()}
            yield _time(network, rank, mode + GRAPH, captured, options, device)


def _time(
    network: Network,
    rank: int,
    mode: str,
    steps: Mapping[str, Step],
    options: argparse.Namespace,
    device: torch.device,
) -> list[dict[str, Any]]:
    first = {name: _first_step(step.run, device) for name, step in steps.items()}
    memory = {name: None if GRAPH in mode else _peak(step.run, device) for name, step in steps.items()}
    burst = BURST if device.type == "cuda" else 1
    runs = {name: _in_a_row(step.run, burst) for name, step in steps.items()}
    found = timed(runs, options.repeats, options.warmup, device)
    times = {name: Timing(tuple(seconds / burst for seconds in found[name].seconds)) for name in steps}
    told = ", ".join(f"{name} {1000 * times[name].median:.1f}" for name in steps)
    print(f"{network.name}, rank {rank}, {mode}, ms: {told}", file=sys.stderr, flush=True)
    return [
        {
            "model": network.name,
            "rank": rank,
            "mode": mode,
            "method": name,
            "ms": 1000 * times[name].median,
            "images/s": options.batch / times[name].median,
            **_ratios(times, name),
            "spread": times[name].spread,
            "peak GiB": memory[name],
            "channels": step.channels,
            "trained": step.trained,
            "fused": step.fused,
            "first step s": first[name],
        }
        for name, step in steps.items()
    ]


def _ratios(times: Mapping[str, Timing], name: str) -> dict[str, float | None]:
    """Return the ratios of a method's images per second to those of the baselines."""
    return {
        f"x {baseline}": times[baseline].median / times[name].median if baseline in times else None
        for baseline in BASELINES[1:]
    }


def _best_ratios(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the ratios of a row's images per second to those of each baseline in its best mode."""
    best = {
        name: min((other["ms"] for other in rows if other["method"] == name), default=None) for name in BASELINES[2:]
    }
    return {f"x best {name}": None if ms is None else ms / row["ms"] for name, ms in best.items()}


def _in_a_row(run: Callable[[], None], times: int) -> Callable[[], None]:
    def several() -> None:
        for _ in range(times):
            run()

    return several


def _first_step(run: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of the first step, compilation and kernels' builds included."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _peak(run: Callable[[], None], device: torch.device) -> float | None:
    """Return the largest memory in GiB that a step allocates in addition: activations and gradients."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30
