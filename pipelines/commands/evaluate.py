"""``metalora evaluate``: k-NN and linear accuracy of a trained adapter, on its data or on other data."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from metalora.build import build_evaluator
from metalora.config import Config, DataConfig, from_dict
from metalora.data import Table, load_table
from metalora.data.loaders import count_loader_workers
from metalora.errors import UserError
from metalora.group import Group
from metalora.train.reporter import Progress, Write
from pipelines.backend.device import this_device
from pipelines.command_line import add_run, make_parser, parse
from pipelines.options import add_settings, resolve, resolve_section
from pipelines.run.console import ProgressDisplay, inform, show_report, terminal, warn
from pipelines.run.folder import read_report, read_settings, writable_file
from pipelines.run.model import fetch, load_model

# sections and settings that an evaluation reads; an adapter has the others in itself
READ = ("backbone", "data", "evaluate", "extractor_weights", "cache_features", "random_seed", "output", "tracking_uri")

MOST_COMPARED = 100_000  # images, by their bytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora evaluate`` with command-line arguments.

    Raises:
        UserError: the command line, the run or its data cannot be used.
    """
    parser = make_parser(
        "metalora evaluate",
        "Evaluate a trained adapter, with the settings of its training unless others are given.",
        "RUN [--config FILE] [--report FILE] [--SETTING VALUE ...]",
        {"--model": "metalora evaluate RUN"},
    )
    add_run(parser, "run", ", or MLflow's models:/NAME@champion or runs:/ID/model")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, which override those of the training")
    parser.add_argument("--report", metavar="FILE", help="also write the accuracies to this file, as JSON")
    add_settings(parser, READ)
    options = parse(parser, arguments)
    file = options.report and writable_file(options.report, "--report")
    console = terminal()
    with tempfile.TemporaryDirectory() as scratch:
        places = resolve_section(options, "cluster").output, resolve_section(options, "tracking").tracking_uri
        folder = fetch(options.run, *places, Path(scratch))
        before = read_settings(folder)
        config = resolve(options, before)
        report = evaluate(config, folder, console, before.get("data", {}))
    if file:
        file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def evaluate(config: Config, folder: Path, console: Console, trained_on: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate the adapter of a run's folder.

    Args:
        config: The training's settings, with those for data and evaluation possibly changed.
        folder: Folder with the adapter and, if they are to be loaded from there, the networks' tensors.
        console: The console to print to.
        trained_on: The data settings of the training.

    Returns:
        The report, as in ``knn.json``.

    Raises:
        UserError: data, backbone and adapter do not fit together.
    """
    table = load_table(config.data)
    model, backbone = load_model(config, folder, partial(inform, console))
    if model.spec.labels != table.labels:
        ours, theirs = ", ".join(table.labels[:5]), ", ".join(model.spec.labels[:5])
        raise UserError(f"the adapter was trained for {len(model.spec.labels)} labels ({theirs}, ...), "
                        f"the data have {len(table.labels)} ({ours}, ...)")  # fmt: skip
    device = this_device()
    workers = count_loader_workers(config.data.loader_workers, os.cpu_count() or 1)
    with ProgressDisplay(console) as display, tempfile.TemporaryDirectory() as scratch:
        evaluator = build_evaluator(
            config, model.to(device), table, backbone.inputs, Group(device), Watcher(display), workers
        )
        _, write = evaluator.test()
        write(Path(scratch))
        report = read_report(Path(scratch))
    show_report(console, report)
    seen = count_trained(trained_on, config.data, table)
    if seen:
        images = len(table.rows("test"))
        warn(console, f"{seen:,} of {images:,} test images were trained on: on others the accuracy may be lower")
    return report


def count_trained(trained_on: Mapping[str, Any], data: DataConfig, table: Table) -> int:
    """Count the test images of a table that a training has seen: files with the same bytes.

    Args:
        trained_on: The data settings of the training; if these data are not there, or there are more than
            `MOST_COMPARED` images, nothing is compared.
        data: The data settings of the table.
        table: The table.
    """
    try:
        settings = from_dict({"data": trained_on}).data
        if settings == data:  # its own test images, which need not be read again
            return 0
        before = load_table(settings)
        rows, seen = table.rows("test"), before.rows("train")
        if before.fingerprint == table.fingerprint or len(rows) + len(seen) > MOST_COMPARED:
            return 0
        known = {hashlib.sha256(before.read(int(row))).digest() for row in seen}
        return sum(hashlib.sha256(table.read(int(row))).digest() in known for row in rows)
    except UserError:
        return 0


class Watcher:
    """A reporter that only shows progress.

    Args:
        display: The display of the progress.
    """

    def __init__(self, display: ProgressDisplay) -> None:
        self.display = display

    def progress(self, progress: Progress) -> None:
        """Show the progress."""
        self.display.show(progress)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore the metrics, which the report has."""

    def checkpoint(self, step: int, write: Write | None) -> None:
        """Keep no checkpoint, since nothing is trained."""
