"""``metalora seeds``: how well the seeds of a finished run tell tasks and classes apart."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from metalora.errors import UserError
from metalora.evaluate.seeds import SeedAnalysis, Separation, analyse, read_seeds, seed_sentence
from metalora.files import atomic_file
from metalora.places import absolute
from metalora.reading import short
from metalora.redact import redact_uri
from metalora.report.plots import plot_tsne
from metalora.report.seed_plots import plot_pca
from metalora.tracking.build import tracking_address
from metalora.tracking.store import add_artifacts
from metalora.train.results import KNN, SEEDS
from pipelines.command_line import add_output, add_run, make_parser, parse
from pipelines.run.console import terminal
from pipelines.run.folder import REPLACED, check_links, find_run, read_report, read_run_note
from pipelines.run.trust import is_known_place


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora seeds`` with command-line arguments.

    Raises:
        UserError: the run does not exist, is not finished or has no seeds.
    """
    what = "Analyse the generated seeds of a finished run (formats cp and tr)."
    parser = make_parser("metalora seeds", what, "RUN [--output DIR]")
    add_run(parser, "run", ", also that of a campaign's trial")
    add_output(parser)
    options = parse(parser, arguments)
    console = terminal()
    folder = find_seeds(options.run, absolute(options.output))
    check_links(folder, REPLACED - {"seeds"})
    analysis, files = analyse_run(folder)
    console.print(separation_table(analysis))
    console.print(seed_sentence(analysis))
    console.print("written   " + "\n          ".join(map(str, files)), soft_wrap=True)
    try:
        _track(folder, files)
    except UserError as error:  # the files are there; a tracker that is away must not hide that
        console.print(f"tracking: {error}", style="yellow", soft_wrap=True)


def find_seeds(run: str, output: Path) -> Path:
    """Return the folder of a finished run with seeds.

    Args:
        run: Name of a run in ``output``, or a path.
        output: Folder of the runs.

    Raises:
        UserError: the run does not exist (the message lists the runs), is not finished, or its format has no seeds.
    """
    folder = find_run(run, output)
    if not (folder / KNN).is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise UserError(f"run {run!r} is not finished: it has no {KNN} (there: {there})")
    if not (folder / SEEDS).is_file():
        format = short(read_report(folder).get("format"))
        raise UserError(f"run {run!r} has no seeds: its format {format} generates none (cp and tr do)")
    return folder


def analyse_run(folder: Path) -> tuple[SeedAnalysis, list[Path]]:
    """Analyse the seeds of a run, and write ``analysis.json``, ``tsne.png`` and ``pca.png`` beside them.

    Returns:
        The analysis and the files.

    Raises:
        UserError: the seeds cannot be read or analysed.
    """
    place = (folder / SEEDS).parent
    seeds = read_seeds(folder / SEEDS)
    analysis = analyse(seeds)
    report, tsne, pca = files = [place / name for name in ("analysis.json", "tsne.png", "pca.png")]
    with atomic_file(report) as temporary:
        temporary.write_text(json.dumps(_plain(analysis), indent=2) + "\n", encoding="utf-8")
    plot_tsne(seeds.vectors, seeds.domains, seeds.labels, tsne)
    plot_pca(analysis.components, analysis.explained, seeds.domains, seeds.labels, pca)
    return analysis, files


def separation_table(analysis: SeedAnalysis) -> Table:
    """Return the table of how well the seeds tell tasks and classes apart, one row each."""
    title = f"{analysis.samples} seeds of {analysis.size} numbers"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("grouped by")
    for heading in ("groups", "probe %", "chance %", "silhouette", "between", "within", "eta² %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in (("task", analysis.task), ("class", analysis.label)):
        table.add_row(
            name,
            str(found.groups),
            "-" if found.probe is None else f"{100 * found.probe:.1f}",
            f"{100 * found.chance:.1f}",
            "-" if found.silhouette is None else f"{found.silhouette:.2f}",
            f"{found.between:.3g}",
            f"{found.within:.3g}",
            f"{100 * found.eta_squared:.1f}",
        )
    return table


def _plain(analysis: SeedAnalysis) -> dict[str, Any]:
    def plain(found: Separation) -> dict[str, Any]:
        return {**asdict(found), "eta_squared": found.eta_squared}

    return {
        "samples": analysis.samples,
        "size": analysis.size,
        "explained": analysis.explained,
        "task": plain(analysis.task),
        "class": plain(analysis.label),
        "sentence": seed_sentence(analysis),
    }


def _track(folder: Path, files: Sequence[Path]) -> None:
    """Add the files to the MLflow run that the folder's ``run.json`` names, if it names one."""
    run_id, uri = read_run_note(folder)
    if not run_id:
        return
    address = tracking_address(uri)
    if not is_known_place("tracking_uri", address, folder):
        raise UserError(f"{redact_uri(uri)!r}, which the run names, was never used from here: nothing is sent there")
    add_artifacts(address, run_id, files, (folder / SEEDS).parent.name)
