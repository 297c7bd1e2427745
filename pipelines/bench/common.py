"""The common parts of the benchmarks: options, clocks, the description of the machine, and the result files."""

import argparse
import functools
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from metalora.config import SECTIONS
from metalora.errors import UserError
from metalora.files import atomic_file
from pipelines.command_line import make_parser, parse
from pipelines.options import add_section

VERSIONS = ("torch", "torchvision", "timm", "ray", "numpy", "scikit-learn", "pillow")
SETTINGS = ("backbone", "adapter", "mapping", "data", "train")  # the sections that a benchmark of trainings takes


@dataclass(frozen=True)
class Size:
    """An option ``--name`` for how much is measured, with a default for ``--small`` and one otherwise."""

    help: str
    small: int
    full: int


def read_options(
    what: str,
    description: str,
    sizes: Mapping[str, Size],
    arguments: Sequence[str] | None,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
    sections: Sequence[str] = (),
) -> argparse.Namespace:
    """Parse a benchmark's command line.

    Args:
        what: Name of the benchmark.
        description: What the benchmark measures.
        sizes: Sizes of the benchmark, by option.
        arguments: The command line.
        more: Function that adds the options that are no sizes.
        sections: Sections of `Config` whose settings are options too.

    Returns:
        All options; ``command`` is the whole command line, as text.

    Raises:
        UserError: an option is unknown, or a size is below 1.
    """
    parser = make_parser(f"metalora bench {what}", description, None, {"--output": "--report"})
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU and for CI")
    parser.add_argument("--report", metavar="FILE",
                        help="file for the results: JSON, and Markdown beside it "
                             f"(default: runs/bench/{what}.json; --small: {what}-small.json there)")  # fmt: skip
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=positive, metavar="N",
                            help=f"{size.help} (default: {size.full:,}; --small: {size.small:,})")  # fmt: skip
    if sections:
        parser.add_argument("--config", metavar="FILE", help="YAML file of settings, below the command line")
    for section in sections:
        add_section(parser, section, SECTIONS[section])
    if more is not None:
        more(parser)
    options = parse(parser, arguments)
    for name, size in sizes.items():
        key = name.replace("-", "_")
        if getattr(options, key) is None:
            setattr(options, key, size.small if options.small else size.full)
    report = options.report or f"runs/bench/{what}{'-small' if options.small else ''}.json"
    options.report = str(_writable(Path(report).expanduser()))
    options.command = shlex.join(["metalora", "bench", what, *(arguments or [])])
    return options


def positive(text: str) -> int:
    """Return the number that an option gives, after checking that it is a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is wanted, got {text!r}")
    return int(text)


def _writable(file: Path) -> Path:
    """Check that the results can be written to a file, before anything is measured."""
    if file.suffix == ".md":
        raise UserError(f"--report {str(file)!r} is for the JSON: the Markdown file lies beside it")
    if file.is_dir():
        raise UserError(f"--report {str(file)!r} is a folder: a file is wanted")
    there = next(parent for parent in file.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--report {str(file)!r} cannot be written: {there} takes no files")
    return file


@dataclass(frozen=True)
class Timing:
    """The seconds of a callable, one value per repeat."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Return (largest - smallest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def timed(
    callables: Mapping[str, Callable[[], Any]],
    repeats: int,
    warmup: int = 1,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Time several callables in one process, in turn, so that a slow phase of the machine affects all of them.

    Args:
        callables: The callables by name.
        repeats: Number of rounds that count.
        warmup: Number of rounds before those.
        device: Device on which they compute; CUDA events time them on a GPU, the clock elsewhere.
    """
    clock = _gpu_seconds if device is not None and device.type == "cuda" else _seconds
    gc.collect()
    gc.disable()  # as timeit does: one callable's garbage would be another's time
    try:
        rounds = [{name: clock(function) for name, function in callables.items()} for _ in range(warmup + repeats)]
    finally:
        gc.enable()
    return {name: Timing(tuple(seconds[name] for seconds in rounds[warmup:])) for name in callables}


def _seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _gpu_seconds(function: Callable[[], Any]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


@functools.cache
def machine() -> dict[str, Any]:
    """Describe the machine, the versions and the commit of a measurement."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        **{name: _version(name) for name in VERSIONS},
        "commit": _commit(),
    }


def _cpu_name() -> str:
    """Return the processor's name, and the widest vectors that torch uses on it."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of this source, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=False, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


@dataclass(frozen=True)
class Result:
    """The result of a benchmark.

    Attributes:
        what: Name of the benchmark.
        measured: What the figures are, in one or two sentences, with their units.
        floor: The best that the machine allows, and how that was found.
        rows: The rows of the table, all with the same columns.
        facts: Further figures by name.
    """

    what: str
    measured: str
    floor: str
    rows: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)


def publish(result: Result, options: argparse.Namespace) -> None:
    """Print a result as Markdown, and `write` it.

    Raises:
        UserError: the files cannot be written.
    """
    print(markdown(result, machine(), options.command))
    file = write(result, options)
    print(f"written   {file}\n          {file.with_suffix('.md')}")


def write(result: Result, options: argparse.Namespace) -> Path:
    """Write a result, with machine and command, as JSON and as Markdown beside it.

    Returns:
        The JSON file.

    Raises:
        UserError: the files cannot be written.
    """
    about = machine()
    file = Path(options.report)
    content = {"command": options.command, "small": options.small, "machine": about, **asdict(result)}
    text = markdown(result, about, options.command)
    try:
        for path, written in ((file, json.dumps(content, indent=2) + "\n"), (file.with_suffix(".md"), text)):
            with atomic_file(path) as temporary:
                temporary.write_text(written, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--report {str(file)!r} cannot be written: {error.strerror}") from None
    return file


def markdown(result: Result, about: Mapping[str, Any], command: str) -> str:
    """Return a result as a Markdown section."""
    lines = [f"## {result.what}", "", result.measured, "", f"Floor: {result.floor}", ""]
    lines += table(result.rows)
    if result.facts:
        lines += ["", *(f"- {name}: {_shown(value)}" for name, value in result.facts.items())]
    described = ", ".join(f"{name} {_shown(value)}" for name, value in about.items() if value)
    lines += ["", f"`{command}`  ", described, ""]
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return rows as the lines of a Markdown table, with numbers aligned right."""
    if not rows:
        return []
    names = list(rows[0])
    rules = ["---:" if isinstance(rows[0][name], int | float) else "---" for name in names]
    body = [[_shown(row[name]) for name in names] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (names, rules, *body)]


def _shown(value: Any) -> str:
    """Return a value as text for people, with four digits of a fraction."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return "-" if value is None else str(value)
