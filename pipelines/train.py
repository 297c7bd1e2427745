"""``metalora train``: one fine-tuning, from the settings to a tracked, loadable adapter."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from metalora.build import build_model, build_networks
from metalora.config import Config, to_yaml
from metalora.data import ImageTable, load_table
from metalora.data.loaders import count_loader_workers
from metalora.errors import UserError
from metalora.group import Group
from metalora.models.assemble import MetaLoRAModel
from metalora.models.backbones import Backbone
from metalora.report.tables import accuracy_table
from metalora.tracking import Tracker, build_tracker, tracking_address
from metalora.train.checkpoint import CheckpointFolder
from metalora.train.evaluation import ADAPTER, KNN
from metalora.train.loop import Trainer, build_sampler, read_resumable
from pipelines.console import ProgressDisplay
from pipelines.listener import Listener, LocalReporter, read_metrics
from pipelines.options import add_settings, make_parser, parse, read_earlier, resolve
from pipelines.results import (
    CONFIG,
    METRICS,
    copy_results,
    read_run_note,
    run_params,
    run_tags,
    upload_model,
    upload_results,
    write_run_note,
)


@dataclass(frozen=True)
class Prepared:
    """What a training needs, built and checked before any cluster resource is taken."""

    config: Config
    table: ImageTable
    backbone: Backbone
    extractor: Backbone | None
    model: MetaLoRAModel


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora train`` with command-line arguments.

    Raises:
        UserError: what the user can mend.
    """
    parser = make_parser("metalora train", "Fine-tune a frozen backbone for several visual domains at once.")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, below the command line")
    parser.add_argument("--print-config", action="store_true", help="print the settings that result, and stop")
    parser.add_argument("--resume", metavar="NAME", help="go on with the run of this name from its last checkpoint")
    add_settings(parser)
    options = parse(parser, arguments)
    config = resolve(options)
    if options.resume:
        earlier = read_earlier(output(config) / options.resume, CONFIG, "run")
        named = {**(earlier.get("tracking") or {}), "run_name": options.resume}
        config = resolve(options, {**earlier, "tracking": named})
        if config.tracking.run_name != options.resume:
            raise UserError(
                f"--run-name {config.tracking.run_name}: a run that is resumed keeps its name, {options.resume}"
            )
    if options.print_config:
        print(to_yaml(config), end="")
        return
    train(config, resume=options.resume is not None)


def train(config: Config, resume: bool = False) -> dict[str, Any]:
    """Train, evaluate, track; print what came of it.

    Args:
        config: All settings.
        resume: Go on with the run named ``tracking.run_name``.

    Returns:
        The k-NN report, as in ``knn.json``.

    Raises:
        UserError: what the user can mend; what was written so far stays.
    """
    console = Console()
    config, folder = name_run(config, resume, config.adapter.format)
    tracker = build_tracker(config.tracking.tracking_uri, config.tracking.experiment, folder.name)
    prepared = prepare(config, lambda text: console.print(text, highlight=False, soft_wrap=True))
    checkpoints = CheckpointFolder(folder, config.train.keep_checkpoints)
    last = checkpoints.latest() if resume else None
    if last is not None:
        read_resumable(last, config, prepared.table)  # before the run's settings are written anew
    _start_tracking(tracker, config, folder)
    status = "FAILED"
    try:
        with ProgressDisplay(console) as display:
            _fit(prepared, tracker, display, checkpoints, last)
        report: dict[str, Any] = json.loads((folder / KNN).read_text(encoding="utf-8"))
        _summarize(console, prepared, report, folder, tracker)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        try:
            if status == "FINISHED":
                upload_results(tracker, folder)
                if config.tracking.log_model:
                    upload_model(tracker, folder, prepared.backbone, prepared.extractor)
            tracker.finish(status)
        except Exception as error:  # the run's folder has everything; a tracker that is away must not hide that
            reason = " ".join(str(error).split())
            console.print(f"tracking: {reason}; 'metalora train --resume {folder.name}' sends it again", style="yellow")
    return report


def prepare(config: Config, say: Callable[[str], None]) -> Prepared:
    """Build and check everything that needs no cluster.

    Args:
        config: All settings.
        say: Told what takes long, and what was left out.

    Raises:
        UserError: what the user can mend.
    """
    if config.cluster.workers:
        from pipelines.ray_backend import check_resources, cluster_address, this_machine

        if cluster_address(config.cluster) is None:
            check_resources(config.cluster, this_machine(), "this machine")
    table = load_table(config.data)
    if table.skipped:
        say(f"{len(table.skipped)} images cannot be decoded and are left out, the first: {table.skipped[0]}")
    images = len(table.rows("train"))
    if max(config.evaluate.knn) > images:
        raise UserError(f"knn {max(config.evaluate.knn)} is more than the {images} images of the train split")
    backbone, extractor = build_networks(config, say)
    model = build_model(config, backbone, extractor, table.labels)
    build_sampler(config, model, table, Group(torch.device("cpu"), world=max(1, config.cluster.workers)))
    return Prepared(config, table, backbone, extractor, model)


def name_run(config: Config, resume: bool, kind: str) -> tuple[Config, Path]:
    """Give a run its name and the tracker's address, and return its folder, not made yet.

    Raises:
        UserError: no plain folder name, or the name is taken.
    """
    made_up = f"{kind}-{config.backbone.backbone.rpartition('/')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
    name = config.tracking.run_name or made_up
    if Path(name).name != name or name.startswith("."):
        raise UserError(f"run_name {name!r} must be a plain folder name")
    folder = output(config) / name
    if folder.exists() and not resume:
        raise UserError(f"run {name!r} exists in {folder.parent}: choose another --run-name, or --resume {name}")
    uri = tracking_address(config.tracking.tracking_uri)
    return replace(config, tracking=replace(config.tracking, run_name=name, tracking_uri=uri)), folder


def output(config: Config) -> Path:
    """Return the folder of all runs."""
    return Path(config.cluster.output).expanduser()


def _start_tracking(tracker: Tracker, config: Config, folder: Path) -> None:
    """Start or continue the tracked run; only then make the run's folder."""
    run_id = read_run_note(folder, config.tracking.tracking_uri)
    tags = {**run_tags("train", "train"), "metalora.format": config.adapter.format}
    run_id = tracker.start(run_params(config), tags, run_id, read_metrics(folder / METRICS))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")
        write_run_note(folder, run_id, config.tracking.tracking_uri)
    except OSError as error:
        tracker.finish("FAILED")
        raise UserError(f"the run's folder {folder} cannot be written: {error.strerror}") from None


def _fit(
    prepared: Prepared, tracker: Tracker, display: ProgressDisplay, checkpoints: CheckpointFolder, last: Path | None
) -> None:
    """Train, here or on Ray, from the last checkpoint on, and put the results into the run's folder."""
    config, folder = prepared.config, checkpoints.folder
    if config.cluster.workers:
        from pipelines.ray_backend import cluster, run_on_ray

        listener = Listener(folder / METRICS, tracker, display)
        with (
            cluster(config.cluster),
            run_on_ray(config, prepared.backbone, prepared.extractor, listener, folder, last) as results,
        ):
            copy_results(results, folder)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reporter = LocalReporter(folder / METRICS, tracker, display, checkpoints)
    trainer = Trainer(
        config,
        prepared.model.to(device),
        prepared.table,
        prepared.backbone.preprocess,
        Group.current(device),
        reporter,
        count_loader_workers(config.data.loader_workers, os.cpu_count() or 1),
    )
    trainer.fit(last)
    finished = checkpoints.latest()
    assert finished is not None, "the trainer ends with a checkpoint"
    copy_results(finished, folder)


def _summarize(console: Console, prepared: Prepared, report: dict[str, Any], folder: Path, tracker: Tracker) -> None:
    console.print(accuracy_table(report["original"], report["adapted"], report["format"]))
    trained, total = prepared.model.count_parameters()
    console.print(
        f"trained   {trained:,} of {total:,} parameters ({trained / total:.2%}); "
        f"accuracy of the trained classifier: {report['test_accuracy']:.1%}\n"
        f"run       {folder}\n"
        f"MLflow    {tracker.where()}\n"
        "load it   " + "\n          ".join(loading_code(prepared.config, folder / ADAPTER)),
        highlight=False,
        soft_wrap=True,
    )


def loading_code(config: Config, adapter: Path) -> list[str]:
    """Return the lines of Python that load a run's adapter."""
    settings, mapping = config.backbone, config.mapping
    lines = ["import metalora"]
    if "none" in (settings.weights, mapping.extractor_weights):
        lines.append(f"import torch; torch.manual_seed({config.train.seed})  # random weights: those of the run")
    size = "" if settings.image_size is None else f", image_size={settings.image_size}"
    lines.append(f"backbone = metalora.build_backbone({settings.backbone!r}, {settings.weights!r}{size})")
    extra = ""
    if mapping.extractor != "backbone":
        lines.append(
            f"extractor = metalora.build_backbone({mapping.extractor!r}, {mapping.extractor_weights!r}, "
            "backbone.input_size[1])"
        )
        extra = ", extractor"
    return [*lines, f"model = metalora.load(backbone, {str(adapter)!r}{extra})"]


if __name__ == "__main__":
    from pipelines.cli import run

    run(main)
