"""``metalora data``: what a data set holds, before anything is trained on it."""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from metalora.config import DataConfig
from metalora.data import Table
from metalora.data.counts import counted, counts, described, imbalance, training_counts
from metalora.data.domains import check
from metalora.data.load import find_table
from metalora.data.names import printable
from metalora.data.sources.image_files import refuse_missing
from metalora.data.survey import Survey, contradictions, leaks, repeated, spread, survey, tiles
from metalora.data.table import SPLITS
from metalora.errors import UserError
from metalora.files import atomic_file
from metalora.places import absolute
from metalora.report.contact_sheet import PER_CELL, SIDE, draw_contact_sheet
from metalora.report.data_tables import MOST_ROWS, class_table, domain_table
from metalora.train.reporter import Progress
from pipelines.command_line import make_parser, parse
from pipelines.options import add_settings, resolve_section
from pipelines.run.console import ProgressDisplay, terminal

READ = (  # settings
    "exclude_domains", "holdout_domains", "val_fraction", "test_fraction", "allow_different_labels", "on_bad_image",
    "max_pixels", "data",
)  # fmt: skip
FEW = 5  # training images of a class
LISTED = 3  # examples of what is wrong
MOST_DOMAINS, MOST_CLASSES = 12, 12  # rows and columns of the contact sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora data`` with command-line arguments.

    Raises:
        UserError: the command line or the data cannot be used.
    """
    parser = make_parser(
        "metalora data",
        "Look at a data set: its counts, sizes, duplicates and unreadable images, and a sheet with some images.",
        "inspect [DATA] [--to FOLDER] [--config FILE] [--SETTING VALUE ...]",
    )
    parser.add_argument("action", metavar="inspect", choices=("inspect",), help="look at every image once")
    parser.add_argument("place", metavar="DATA", nargs="?", help="the images, as for --data (default: embedded)")
    parser.add_argument(
        "--to", metavar="FOLDER",
        help="folder for contact_sheet.png and counts.csv (default: inspected/NAME, with the name of DATA)",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    add_settings(parser, READ)
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given or (given[0] != "inspect" and not given[0].startswith("-")):
        met = f", got {given[0]!r}" if given else ""
        raise UserError(f"wanted: metalora data inspect DATA{met}")
    options = parse(parser, given)
    if options.place is not None:
        if hasattr(options, "data"):
            raise UserError(f"the data are named twice, {options.place!r} and --data {options.data!r}; wanted: once")
        options.data = options.place
    config = resolve_section(options, "data")
    folder = options.to or Path("inspected") / (Path(config.data).name or "data")
    inspect(config, absolute(folder), terminal())


def inspect(config: DataConfig, folder: Path, console: Console) -> None:
    """Print what a data set holds, and write ``contact_sheet.png`` and ``counts.csv`` into a folder.

    Raises:
        UserError: the data cannot be read at all, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--to {str(folder)!r} cannot be written: {error.strerror}") from None
    table = find_table(config)
    with ProgressDisplay(console) as display:
        found = survey(table, lambda done: display.show(Progress("inspect", done, len(table))))
    console.print(f"data      {described(table)}", soft_wrap=True)
    numbers = counts(table)
    domains, classes = [printable(name) for name in table.domains], [printable(name) for name in table.labels]
    console.print(domain_table(domains, SPLITS, numbers, [printable(name) for name in table.holdout]))
    console.print(class_table(classes, SPLITS, numbers))
    for line in (*_lines(table, found), f"training  {_outcome(table, found, config)}"):
        console.print(line, soft_wrap=True)
    with atomic_file(folder / "counts.csv") as file, file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("domain", "class", *SPLITS), *_count_rows(table)])
    _draw(table, found, folder / "contact_sheet.png")
    console.print(f"written   {folder / 'contact_sheet.png'}, {folder / 'counts.csv'}", soft_wrap=True)


def _lines(table: Table, found: Survey) -> Iterator[str]:
    """Yield what the images are, and what may be wrong with them, a line each."""
    training = training_counts(table)
    few = int((training < FEW).sum())
    if few and len(table.labels) > MOST_ROWS:
        yield f"classes   {counted(few, 'class has', 'classes have')} fewer than {FEW} training images"
    yield f"balance   {imbalance(table) or 'no class has 10 times the training images of another'}"
    if len(found.sizes):
        least, middle, most = (statistic(found.sizes, axis=0) for statistic in (np.min, np.median, np.max))
        sizes = (f"{width:.0f} x {height:.0f}" for width, height in (least, middle, most))
        yield "sizes     {} least, {} median, {} most (width x height)".format(*sizes)
        yield f"formats   {', '.join(f'{count:,} {name}' for name, count in found.formats.items())}"
    if table.ignored:
        yield f"left out  {counted(len(table.ignored), 'file')} where no images are looked for: {table.ignored[0]} ..."
    same = repeated(table, found.equal)
    yield f"repeated  {counted(same, 'image')} more than once in one split and domain (same decoded pixels)"
    if same:
        yield from _examples(table, [(rows[0], rows[1]) for rows in found.equal if repeated(table, [rows])], " = ")
    across = leaks(table, found.equal)
    inside = sum(table.domain[one] == table.domain[other] for one, other in across)
    yield (
        f"leaks     {counted(len(across), 'image')} of val or test also in an earlier split"
        + (f", {inside:,} of them in the same domain" if across else "")
    )
    yield from _examples(table, across, " = ", lambda row: SPLITS[table.split[row]])
    wrong = contradictions(table, found.equal)
    yield f"labels    {counted(len(wrong), 'image')} with two labels in one domain"
    yield from _examples(table, wrong, " = ", lambda row: table.labels[table.label[row]])
    yield f"unread    {counted(len(found.unreadable), 'image')} that cannot be read"
    reasons = list(found.unreadable.values())
    yield from (f"          {reason}" for reason in reasons[:LISTED])
    if len(reasons) > LISTED:
        yield f"          and {len(reasons) - LISTED:,} more"


def _examples(
    table: Table, pairs: Sequence[tuple[int, int]], sign: str, told: Callable[[int], str] | None = None
) -> Iterator[str]:
    def name(row: int) -> str:
        return printable(str(table.id[row])) + (f" ({printable(told(row))})" if told else "")

    yield from (f"          {name(one)}{sign}{name(other)}" for one, other in pairs[:LISTED])
    if len(pairs) > LISTED:
        yield f"          and {len(pairs) - LISTED:,} more"


def _outcome(table: Table, found: Survey, config: DataConfig) -> str:
    """Return what a training would do with the data."""
    try:
        refuse_missing(table.missing)
        bad = len(found.unreadable)
        if bad and config.on_bad_image == "error":
            return f"would stop: {counted(bad, 'image')} cannot be decoded; --on-bad-image skip leaves them out"
        check(table.select(found.readable) if bad else table, config.allow_different_labels)
    except UserError as error:
        return f"would stop: {error}"
    return f"would start, and leave out {counted(bad, 'image')}" if bad else "would start"


def _count_rows(table: Table) -> Iterator[tuple[object, ...]]:
    for domain, by_class in zip(table.domains, counts(table).tolist(), strict=True):
        for label, by_split in zip(table.labels, by_class, strict=True):
            yield printable(domain), printable(label), *by_split


def _draw(table: Table, found: Survey, file: Path) -> None:
    """Draw the contact sheet, of some domains and classes if there are many."""
    domains, classes = spread(len(table.domains), MOST_DOMAINS), spread(len(table.labels), MOST_CLASSES)
    cells = {}
    for i, domain in enumerate(domains):
        for j, label in enumerate(classes):
            rows = np.flatnonzero(found.readable & (table.domain == domain) & (table.label == label))
            cells[i, j] = [np.asarray(tile) for tile in tiles(table, rows[spread(len(rows), PER_CELL)], SIDE)]
    shown = ((domains, table.domains, "domains"), (classes, table.labels, "classes"))
    some = [f"{len(part):,} of {len(whole):,} {kind}" for part, whole, kind in shown if len(part) < len(whole)]
    caption = "; ".join([*some, f"up to {PER_CELL} images of each domain and class"])
    names = [table.domains[i] for i in domains], [table.labels[i] for i in classes]
    draw_contact_sheet(file, *names, cells, caption)
