"""``metalora bench WHAT``: the speed of each part, beside what it is compared with and what the machine allows."""

from collections.abc import Sequence

from pipelines.cli import dispatch

BENCHMARKS = {
    "cache": "a training epoch with cached extractor features, and the time to the first step",
    "data": "decoding and resizing images, by number of loader processes",
    "knn": "the k-NN search against scikit-learn's brute force",
    "memory": "the largest batch of a training step by network and method, on a GPU",
    "overhead": "the loop on Ray Train against the same loop without Ray",
    "scaling": "images per second with 1, 2, ... workers",
    "step": "a training step by network, method, rank and kernel",
    "trials": "trials per hour of a campaign, and the pause between them",
}
USAGE = f"""usage: metalora bench WHAT [OPTIONS]

benchmarks:
{chr(10).join(f"  {name:10}{what}" for name, what in BENCHMARKS.items())}

Each prints a table and writes it, with machine, versions and command, as JSON and Markdown below runs/bench.
metalora bench WHAT --help lists a benchmark's options; --small takes seconds to a minute on a CPU."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora bench`` with command-line arguments.

    Raises:
        UserError: the benchmark is unknown, or its options cannot be used.
    """
    dispatch(arguments or [], BENCHMARKS, USAGE, "benchmark", __name__)
