"""Folders of runs and campaigns, read by ``report``, ``seeds``, ``evaluate`` and what ``--resume`` does."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml

from metalora.config import Config, from_dict, to_dict, to_yaml
from metalora.errors import UserError
from metalora.evaluate.seeds import analyse, read_seeds, write_seeds
from metalora.reading import read_yaml
from metalora.report.campaign_tables import best, failure_section, heading, leaderboard_section, standing, task_section
from pipelines.campaign.plan import CampaignConfig, Plan
from pipelines.campaign.report import read_campaign
from pipelines.campaign.spaces import load_space
from pipelines.campaign.trials import TrialRecord, TrialSpec, best_trial, read_trials
from pipelines.campaign.verdict import answers
from pipelines.campaign.verdict_words import verdict_lines, verdict_section
from pipelines.commands import evaluate, train, tune
from pipelines.commands.seeds import find_seeds
from pipelines.run.folder import CAMPAIGN, METRICS, read_run_note, write_run_note
from pipelines.run.log import read_metrics
from tests.fuzz.mutators import change_file, change_value, dump, replace_file
from tests.fuzz.surface import Expect, Mutation, Surface

OBJECTIVE = "val/knn5"


def make(seeds: Path) -> Callable[[Path], object]:
    """Write a campaign of two trials, and finished runs with and without seeds, from where the mutants will lie."""
    mutant = seeds.parent / "mutant"
    for kind, write in (("campaign", write_campaign), ("run", write_run), ("plain", _write_plain_run)):
        mutant.mkdir()
        write(mutant)
        shutil.copytree(mutant, seeds / kind)
        shutil.rmtree(mutant)
    return read


def read(folder: Path) -> object:
    """Read a campaign or a run by all commands that do."""
    if (folder / "trials").is_dir():
        return _together(_report, _resume_campaign, folder=folder)
    return _together(_resume_run, _evaluate_run, _read_seeds, folder=folder)


def _together(*readers: Callable[[Path], object], folder: Path) -> object:
    """Return what several readers say; refuse in the end if one did, so that one does not hide another's fault."""
    said, refused = [], []
    for reader in readers:
        try:
            said.append(reader(folder))
        except UserError as error:
            said.append("refused")
            refused.append(error)
    if len(refused) == len(readers):
        raise refused[0]
    for error in refused:
        assert len(str(error).splitlines()) == 1, f"a message of several lines: {str(error)[:300]!r}"
    return said


def _report(folder: Path) -> object:
    campaign = read_campaign(folder)
    told = [f(campaign, answers(campaign)) for f in (verdict_section, verdict_lines)]
    return [f(campaign) for f in (heading, standing, best, leaderboard_section, task_section, failure_section)] + told


def _resume_campaign(folder: Path) -> object:
    plans: list[Plan] = []
    tune.run_campaign = lambda plan, resume, dry_run: plans.append(plan)  # what reads ends here
    tune.main(["--resume", str(folder)])
    plan = replace(plans[0], campaign=replace(plans[0].campaign, objectives=(OBJECTIVE,)), fingerprint="data")
    plan.check_same(folder)
    records = read_trials(folder)
    return records, best_trial(records, OBJECTIVE)


def _resume_run(folder: Path) -> object:
    configs: list[Config] = []
    train.train = lambda config, resume, dry_run: configs.append(config)
    train.main(["--resume", str(folder)])
    return to_dict(configs[0]), read_run_note(folder), list(read_metrics(folder / METRICS))


def _evaluate_run(folder: Path) -> object:
    configs: list[Config] = []
    evaluate.evaluate = lambda config, folder, console, trained_on: configs.append(config)
    evaluate.main([str(folder)])
    return to_dict(configs[0])


def _read_seeds(folder: Path) -> object:
    seeds = read_seeds(find_seeds(str(folder), folder.parent) / "seeds" / "seeds.parquet")
    analysis = analyse(seeds)
    return seeds.ids, seeds.domains, seeds.labels, seeds.splits, seeds.vectors, analysis.task, analysis.label


def mutate(random: Random, folder: Path) -> Mutation:
    """Change a file: its bytes, or the values it holds."""
    file = random.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    kind = random.choice(("bytes", "file", "values", "values", "values", "values"))
    if kind == "file":
        return Mutation(f"{file.parent.name}: {replace_file(random, file)}", Expect.ANY)
    if kind == "values" and file.suffix in _CHANGES:
        return Mutation(f"{file.relative_to(folder)}: {_CHANGES[file.suffix](random, file)}", Expect.ANY)
    return Mutation(f"{file.parent.name}: {change_file(random, file)}", Expect.ANY)


def _change_json(random: Random, file: Path) -> str:
    value, recipe = change_value(random, json.loads(file.read_text(encoding="utf-8")))
    file.write_text(dump(value), encoding="utf-8")
    return recipe


def _change_lines(random: Random, file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    row = random.randrange(len(lines))
    value, recipe = change_value(random, json.loads(lines[row]))
    lines[row] = dump(value)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {row + 1}: {recipe}"


def _change_yaml(random: Random, file: Path) -> str:
    value, recipe = change_value(random, read_yaml(file))
    file.write_text(dump(value), encoding="utf-8")
    return recipe


def _change_seeds(random: Random, file: Path) -> str:
    import pyarrow.parquet as pq

    from tests.fuzz.surfaces.parquet import TABLES

    recipe, table, _ = random.choice(TABLES)(random, pq.read_table(file))
    pq.write_table(table, file)
    return str(recipe)


_CHANGES = {".json": _change_json, ".jsonl": _change_lines, ".yaml": _change_yaml, ".parquet": _change_seeds}


def _settings(**adapter: Any) -> Config:
    return from_dict(
        {
            "adapter": adapter,
            "tracking": {"tracking_uri": "none"},
            "cluster": {"workers": 0},
            "data": {"batch_size": 32},
        }
    )


def _write_metrics(folder: Path, steps: Sequence[int] = (10, 20)) -> None:
    lines = [
        {
            "step": step,
            "time": 1.5e9,
            "metrics": {
                OBJECTIVE: 0.5 + step / 100,
                "test/knn5": 0.6,
                f"{OBJECTIVE}/paper": 0.6,
                "train/images_per_second": 99.0,
            },
        }
        for step in steps
    ]
    (folder / METRICS).write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def _write_plain_run(folder: Path) -> None:
    (folder / "config.yaml").write_text(to_yaml(_settings(format="lora")), encoding="utf-8")
    write_run_note(folder, "0123456789abcdef", "none")
    _write_metrics(folder)
    (folder / "knn.json").write_text(json.dumps({"format": "lora", "test_accuracy": 0.5}), encoding="utf-8")
    (folder / "adapter").mkdir()


def write_run(folder: Path) -> None:
    _write_plain_run(folder)
    (folder / "config.yaml").write_text(to_yaml(_settings(format="cp", rank_pattern={"conv": 2})), encoding="utf-8")
    names = [f"n{number}" for number in range(12)]
    vectors = np.random.default_rng(0).normal(size=(12, 4))
    (folder / "seeds").mkdir()
    write_seeds(
        folder / "seeds" / "seeds.parquet",
        names,
        ["paper", "slate"] * 6,
        ["circle"] * 6 + ["cross"] * 6,
        ["test"] * 12,
        vectors,
    )


def write_campaign(folder: Path) -> None:
    space = load_space("paper")
    images = {"val": {"paper": 9}, "test": {"paper": 9}}
    plan = Plan(CampaignConfig(objectives=(OBJECTIVE,)), _settings(), space, "data", images)
    votes = {"uniform": {"5": 0.4}, "weighted": {"5": 0.4}}
    original = {"overall": votes, "by_domain": {"paper": votes}, "queries": {"paper": 9}, "linear": 0.5}
    (folder / CAMPAIGN).write_text(yaml.safe_dump(plan.as_dict(), sort_keys=False), encoding="utf-8")
    write_run_note(folder, None, "none")
    for number, format in enumerate(("lora", "cp", "tr")):
        trial = TrialSpec.of(number, {"format": format, "rank": 2 + number, "lr": 0.01}, 0)
        place = folder / "trials" / trial.name
        place.mkdir(parents=True)
        error = "Traceback:\n  x\nValueError: y" if number == 2 else None
        record = TrialRecord(
            trial, "failed" if error else "finished", error, 1000, 2.5, None, {OBJECTIVE: 0.7}, "checkpoint_00000020"
        )
        record.write(place)
        _write_metrics(place)
        (place / "knn.json").write_text(json.dumps({"original": original}), encoding="utf-8")
        (place / "config.yaml").write_text(to_yaml(_settings(format=format)), encoding="utf-8")


surface = Surface("runs", make, mutate, named=("mutant",), share=2)
