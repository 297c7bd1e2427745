"""``metalora train``: one fine-tuning, from the settings to an adapter that is tracked and can be loaded."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from metalora.config import Config, to_yaml
from metalora.errors import UserError, given_as
from metalora.evaluate.predictions import read_predictions
from metalora.report.errors import weakest
from metalora.tracking.build import build_tracker
from metalora.tracking.tracker import Tracker
from metalora.train.checkpoint import CheckpointFolder, whole
from metalora.train.results import ADAPTER, PREDICTIONS, has_results
from metalora.train.resume import extended, read_resumable
from pipelines.backend.local import train_here
from pipelines.backend.prepare import Prepared, prepare
from pipelines.command_line import add_dry_run, add_resume, make_parser, parse
from pipelines.options import add_settings, config_file, resolve, resolve_section
from pipelines.run.claim import named_run, to_continue
from pipelines.run.console import ProgressDisplay, inform, only_tells, show_report, terminal, warn
from pipelines.run.folder import (
    CONFIG,
    METRICS,
    continued,
    find_run,
    only_shows,
    read_report,
    read_run_note,
    read_settings,
    run_params,
    run_tags,
    upload_model,
)
from pipelines.run.log import RunLog
from pipelines.run.model import find_adapter
from pipelines.run.rehearsal import ENDED, show_training
from pipelines.run.results import copy_results, upload_results
from pipelines.run.tracking import start_tracking, tell_untracked
from pipelines.run.trust import check_places


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora train`` with command-line arguments.

    Raises:
        UserError: the command line, the settings or the data cannot be used, or the training fails.
    """
    parser = make_parser("metalora train", "Fine-tune a frozen backbone for several visual domains at once.")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, below the command line")
    parser.add_argument("--print-config", action="store_true", help="print the resulting settings, and stop")
    add_dry_run(parser, "trained")
    add_resume(parser, "a run, from its last checkpoint")
    add_settings(parser)
    options = parse(parser, arguments)
    folder = None
    if options.resume:
        folder = find_run(options.resume, Path(resolve_section(options, "cluster").output))
        config = resolve(options, continued(folder, read_settings(folder)))
        if config.tracking.run_name != folder.name:
            raise UserError(
                f"--run-name {config.tracking.run_name}: a run that is resumed keeps its name, {folder.name}"
            )
    else:
        config = resolve(options, begun_with(options))
    if options.print_config:
        terminal().print(to_yaml(config), end="", soft_wrap=True)
        return
    check_places(config, options, folder)
    train(config, resume=options.resume is not None, dry_run=options.dry_run)


def begun_with(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings of the run that ``--init-adapter`` names, as defaults; the option becomes a folder.

    Raises:
        UserError: there is no such run or adapter, or the run is not finished.
    """
    in_file = config_file(options).get("adapter")
    name = getattr(options, "init_adapter", in_file.get("init_adapter") if isinstance(in_file, Mapping) else None)
    if name in (None, "none", "null"):
        return {}
    try:
        adapter, settings = find_adapter(str(name), Path(resolve_section(options, "cluster").output))
    except UserError as error:
        raise UserError(f"{error}{given_as('init_adapter')}") from None
    options.init_adapter = str(adapter)
    return settings


def train(config: Config, resume: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Train, evaluate and track, and print a summary.

    Args:
        config: All settings.
        resume: Whether to continue the run named ``tracking.run_name``.
        dry_run: Whether to stop before anything is trained, written or tracked, and only print what would be.

    Returns:
        The k-NN report, as in ``knn.json``; empty after a dry run.

    Raises:
        UserError: the settings or the data cannot be used, or the training fails; files written so far stay.
    """
    console = terminal()
    with named_run(config, resume, config.adapter.format.name, "train") as (config, folder):
        inform(console, f"run       {_described(config)}")
        tracker = build_tracker(config.tracking.tracking_uri, config.tracking.experiment, folder.name)
        checkpoints = CheckpointFolder(folder, config.train.keep_checkpoints)
        newest = checkpoints.latest() if resume else None
        last = newest and whole(newest, partial(warn, console))
        prepared = prepare(config, partial(inform, console), last is None, partial(warn, console))
        if last is not None:
            # before the run's settings are written anew
            state = read_resumable(last, config, prepared.table, prepared.model)
            longer = extended(state, config)
            if has_results(last) and not longer:
                console.print(f"run {folder.name} has ended (--epochs N trains longer)", soft_wrap=True)
            else:
                rises = "; the learning rate follows the longer schedule, so it rises again" if longer else ""
                inform(console, f"continues after step {state['step']:,} of {prepared.steps[1]:,}{rises}")
        if dry_run:
            show_training(console, config, prepared.model.count_parameters(), prepared.steps)
            console.print(ENDED)
            return {}
        tags = {**run_tags("train", "train"), "metalora.format": config.adapter.format.name}
        uri = config.tracking.tracking_uri
        start_tracking(tracker, folder, uri, run_params(config), tags, {CONFIG: to_yaml(config)})
        status = "FAILED"
        try:
            with ProgressDisplay(console) as display:
                _fit(prepared, tracker, display, checkpoints, last)
            status = "FINISHED"
            report = read_report(folder)
            with only_shows("the summary", console.print):
                _summarize(console, prepared, report, folder, tracker)
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except UserError as error:
            if checkpoints.latest() is not None:
                error.add_note(f"once that is mended, {to_continue(folder, 'train')}")
            raise
        finally:
            _finish(tracker, prepared, folder, status, console)
    return report


def _described(config: Config) -> str:
    """Return what is trained, in a line."""
    workers, epochs = config.cluster.workers, config.train.epochs
    where = f"{workers} Ray worker{'s' * (workers > 1)}" if workers else "this process, without Ray"
    rank = config.adapter.rank if config.adapter.parameter_budget is None else "by budget"
    adapter = f"{config.adapter.format}, rank {rank}, on {config.backbone.backbone}"
    return f"{config.tracking.run_name}: {adapter}; {epochs} epoch{'s' * (epochs > 1)}; {where}"


def _finish(tracker: Tracker, prepared: Prepared, folder: Path, status: str, console: Console) -> None:
    """End the tracked run, with the results if there are any."""
    with only_tells(tell_untracked(f"train --resume {folder.name}", console)):
        if status == "FINISHED":
            upload_results(tracker, folder)
            if prepared.config.tracking.log_model:
                upload_model(tracker, folder, prepared.backbone, prepared.extractor)
        tracker.finish(status)


def _fit(
    prepared: Prepared, tracker: Tracker, display: ProgressDisplay, checkpoints: CheckpointFolder, last: Path | None
) -> None:
    """Train, here or on Ray, from the last checkpoint on, and put the results into the run's folder."""
    folder = checkpoints.folder
    log = RunLog(folder / METRICS, tracker, display.say, display.show, checkpoints, display.tell)
    if prepared.config.cluster.workers:
        from pipelines.backend.workers import train_on_ray

        with train_on_ray(prepared, log, folder, last) as results:
            copy_results(results, folder, log.say, prepared.table)
    else:
        copy_results(train_here(prepared, log, checkpoints, last), folder, log.say, prepared.table)


def _summarize(console: Console, prepared: Prepared, report: dict[str, Any], folder: Path, tracker: Tracker) -> None:
    show_report(console, report)
    console.print(*_mistakes(folder), sep="\n", end="", soft_wrap=True)
    trained, total = prepared.model.count_parameters()
    console.print(
        f"trained   {trained:,} of {total:,} parameters ({trained / total:.2%})\n"
        f"run       {folder}\n"
        f"MLflow    {tracker.where()}\n"
        f"predict   metalora predict {shlex.quote(folder.name)} IMAGES [--to predictions.csv]\n"
        f"{_served(prepared.config, folder)}"
        "load it   " + "\n          ".join(loading_code(prepared.config, folder / ADAPTER)),
        soft_wrap=True,
    )


def _served(config: Config, folder: Path) -> str:
    """Return the line that says how the model in MLflow is served; empty if it is not there."""
    run_id, uri = read_run_note(folder)
    if run_id is None or not config.tracking.log_model:
        return ""
    command = f"mlflow models serve -m runs:/{run_id}/model --env-manager local"
    return f"serve     MLFLOW_TRACKING_URI={shlex.quote(uri)} {command}\n"


def _mistakes(folder: Path) -> list[str]:
    """Return lines on the classes that are predicted worst, and where all of them are."""
    if not (folder / PREDICTIONS).is_file():
        return [""]
    lines = [
        f"{one.domain}: {one.label} {one.accuracy:.0%} of {one.images:,}, often taken for {one.instead}"
        for one in weakest(read_predictions(folder / PREDICTIONS))
    ]
    found = [f"{'weakest' if not number else '':10}{line}" for number, line in enumerate(lines)]
    return [*found, f"mistakes  {(folder / PREDICTIONS).parent}", ""]


def loading_code(config: Config, adapter: Path) -> list[str]:
    """Return the lines of Python code that load a run's adapter."""
    settings, mapping = config.backbone, config.mapping
    lines = ["import metalora"]
    if "none" in (settings.weights, mapping.extractor_weights):
        lines.append(f"import torch; torch.manual_seed({config.train.random_seed})  # random weights: those of the run")
    size = "" if settings.image_size is None else f", image_size={settings.image_size}"
    lines.append(f"backbone = metalora.build_backbone({settings.backbone!r}, {settings.weights!r}{size})")
    extra = ""
    if mapping.extractor != "backbone":
        lines.append(
            f"extractor = metalora.build_backbone({mapping.extractor!r}, {mapping.extractor_weights!r}, "
            "backbone.input_size[1])"
        )
        extra = ", extractor"
    load = f"model = metalora.load(backbone, {str(adapter)!r}{extra})"
    return [*lines, load, "predictions = model.predict(['image.jpg'])  # label, probability"]
