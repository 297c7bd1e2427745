"""``metalora predict``: the labels of images, as a trained adapter sees them, in a file."""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from metalora.config import Config
from metalora.data.counts import counted
from metalora.data.unlabelled import Unlabelled
from metalora.errors import UserError, given_as
from metalora.files import sha256
from metalora.models.model import MetaLoRAModel
from metalora.models.predictor import BATCH, Predictor
from metalora.places import absolute
from metalora.train.reporter import Progress
from metalora.train.results import ADAPTER
from pipelines.backend.predicting import Chunk, predict_here, predict_on_ray
from pipelines.command_line import add_run, make_parser, parse
from pipelines.options import add_settings, resolve, resolve_section
from pipelines.run.console import ProgressDisplay, inform, terminal
from pipelines.run.folder import read_settings
from pipelines.run.model import fetch, load_model
from pipelines.run.predictions import Predictions

PART = 1024  # images of a part; what an interrupted command has to do again at most
READ = ("weights", "extractor_weights", "output", "tracking_uri", "ray_address", "cpus_per_worker", "gpus_per_worker")
NAMES = {"batch": "batch-size", "actors": "workers"}  # of options that are settings of a training elsewhere


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora predict`` with command-line arguments.

    Raises:
        UserError: the command line, the run or the images cannot be used.
    """
    parser = make_parser(
        "metalora predict",
        "Predict the labels of images. The same command again continues what was interrupted.",
        "RUN IMAGES [--to FILE] [--top N] [--features] [--workers N]",
    )
    add_run(parser, "run", ", or MLflow's models:/NAME@champion or runs:/ID/model")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="an image file, a folder of them at any depth, Parquet, or CSV that names image files",
    )
    parser.add_argument(
        "--to", metavar="FILE", help="file to write: .parquet or .csv (default: the predictions are printed)"
    )
    parser.add_argument("--top", metavar="N", type=int, default=1, help="labels for each image (default: 1)")
    parser.add_argument("--features", action="store_true", help="also write the adapted features, to Parquet")
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=BATCH, dest="batch", help=f"images at a time (default: {BATCH})"
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, default=0, dest="actors",
        help="actors on Ray; 0: in this process, without Ray (default: 0)",
    )  # fmt: skip
    add_settings(parser, READ)
    parser.set_defaults(config=None)
    options = parse(parser, arguments)
    for name, least in (("top", 1), ("batch", 1), ("actors", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{NAMES.get(name, name)} must be {least} or more, got {getattr(options, name)}")
    if options.to is None:
        show(options)
        return
    if len(options.images) > 1:
        raise UserError(f"--to takes the predictions of one file, folder or table, got {len(options.images)}")
    predict(options)


def show(options: argparse.Namespace) -> None:
    """Predict in this process, and print the labels of each image.

    Raises:
        UserError: the options ask for what takes a file, or run or images cannot be used.
    """
    if options.features or options.actors:
        raise UserError(f"--{'features' if options.features else 'workers'} needs a file to write: --to FILE")
    console = terminal()
    several = [(path, Unlabelled(absolute(path))) for path in options.images]
    _, model, _ = _loaded(options, console)
    top = min(options.top, len(model.spec.labels))
    for path, images in several:
        for _, names, found in predict_here(Predictor(model, options.batch), enumerate(_chunks(images)), top, False):
            for name, one in zip(names, found, strict=True):
                labels = None if isinstance(one, UserError) else ", ".join(f"{y} {p:.1%}" for y, p in one.top)
                shown = path if Path(path).name == name else name
                console.print(f"{shown}  {one if labels is None else labels}", soft_wrap=True)


def predict(options: argparse.Namespace) -> None:
    """Predict as the options of the command say, into a file, and print a summary."""
    console = terminal()
    images = Unlabelled(absolute(options.images[0]))
    config, model, adapter = _loaded(options, console)
    top = min(options.top, len(model.spec.labels))
    plan = {"adapter": adapter, "images": images.fingerprint, "top": top, "features": options.features}
    parts = -(-len(images) // PART)
    find = partial(predict_on_ray, config.cluster, options.actors) if options.actors else predict_here
    with Predictions(options.to, plan, top, options.features) as file, ProgressDisplay(console) as display:
        missing = ((number, chunk) for number, chunk in enumerate(_chunks(images)) if not file.has(number))
        done = sum(map(file.has, range(parts)))
        for number, names, found in find(Predictor(model, options.batch), missing, top, options.features):
            file.write(number, names, found)
            done += 1
            display.show(Progress("predict", min(done * PART, len(images)), len(images)))
        count, failed = file.finish(parts)
    unread = f", {failed:,} of which could not be read: column 'error' says why" if failed else ""
    console.print(f"predicted {counted(count, 'image')}{unread}\nwritten   {file.file}", soft_wrap=True)


def _loaded(options: argparse.Namespace, console: Console) -> tuple[Config, MetaLoRAModel, str]:
    """Return the settings of the run that the options name, its model, and the hash of its adapter."""
    with tempfile.TemporaryDirectory() as scratch:
        places = resolve_section(options, "cluster").output, resolve_section(options, "tracking").tracking_uri
        folder = fetch(options.run, *places, Path(scratch))
        config = resolve(options, read_settings(folder))
        _check(config, options.run)
        model, _ = load_model(config, folder, partial(inform, console))
        return config, model, sha256(folder / ADAPTER / "adapter.safetensors")


def _check(config: Config, run: str) -> None:
    if config.mapping.seed_granularity == "task":
        raise UserError(
            f"run {run!r} was trained with one seed per task (seed_granularity task), and images by themselves have no "
            "task; metalora evaluate takes the seeds of tasks from the training images"
            f"{given_as('seed_granularity')}"
        )


def _chunks(images: Unlabelled) -> Iterator[Chunk]:
    """Yield the images part by part."""
    chunk: Chunk = []
    for image in images:
        chunk.append(image)
        if len(chunk) == PART:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
