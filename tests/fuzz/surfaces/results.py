"""Results written into a run's folder from a stranger, in which files and folders are links to elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import metalora
from metalora.tracking.tracker import NullTracker
from pipelines.campaign.report import write_report
from pipelines.campaign.trials import TrialRecord, TrialSpec
from pipelines.commands.seeds import analyse_run
from pipelines.run.folder import check_links, write_run_note
from pipelines.run.log import RunLog
from pipelines.run.results import copy_results
from tests.fuzz.surface import Expect, Mutation, Surface
from tests.fuzz.surfaces.networks import tiny_backbone, tiny_model
from tests.fuzz.surfaces.runs import write_campaign, write_run

WRITTEN = (
    "adapter", "adapter/adapter.json", "adapter/adapter.safetensors", "knn.json", "metrics.jsonl", "run.json",
    "seeds", "seeds/seeds.parquet", "predictions", "predictions/test.parquet",
    "seeds/tsne.png", "seeds/pca.png", "seeds/analysis.json", "report", "report/report.md", "trial.json", "error.txt",
)  # fmt: skip


def make(seeds: Path) -> Callable[[Path], object]:
    """Write a run's folder, a campaign in it, and the results of a training to be copied there."""
    folder, results = seeds / "run" / "run", seeds / "run" / "results"
    for place in (folder, results):
        place.mkdir(parents=True)
        write_run(place)
    write_campaign(folder)
    metalora.save(tiny_model(tiny_backbone(), "lora"), folder / "adapter")
    metalora.save(tiny_model(tiny_backbone(), "lora"), results / "adapter")
    return write


def write(folder: Path) -> object:
    """Write all that commands do; return what the folder's own results are then."""
    run = folder / "run"
    check_links(run)  # as named_run does for each command
    copy_results(folder / "results", run, lambda text: None)
    write_run_note(run, "abc", "none")
    RunLog(run / "metrics.jsonl", NullTracker(), lambda text: None).metrics(30, {"val/knn5": 0.9})
    TrialRecord(TrialSpec(0, {}, 0, "x")).write(run)
    analyse_run(run)
    write_report(run)
    return json.loads((run / "knn.json").read_text()), json.loads((run / "run.json").read_text())


def mutate(random: Random, folder: Path) -> Mutation:
    """Put links in the place of what is going to be written."""
    outside = folder.parent / "outside"
    recipe = ""
    for name in random.sample(WRITTEN, random.choice((1, 1, 2))):
        path = folder / "run" / name
        if path.parent.is_symlink() or not path.parent.is_dir():
            continue
        target = random.choice((outside / "canary", outside / "folder", outside / "new", path))
        _remove(path)
        path.symlink_to(target)
        recipe += f"{name} is a link to {target.name} "
    return Mutation(recipe, Expect.ANY)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inside in path.iterdir():
            _remove(inside)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


surface = Surface("results", make, mutate, writes=True, share=0.15)
