"""``metalora report``: campaigns of many trials, one, none, and broken ones, from their folders."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from metalora.errors import UserError
from pipelines.campaign.report import read_campaign, write_report
from pipelines.commands.report import main

TASKS = ("photo", "sketch")
PICTURES = ("cost.png", "importance.png", "parallel.png", "ranks.png")


def write_trial(
    folder: Path, name: str, point: dict[str, Any], value: float | None = 0.9, rate: float = 3200, **note: Any
) -> None:
    """Leave what a trial leaves; ``value`` None: it has reported nothing."""
    trial = folder / "trials" / name
    trial.mkdir(parents=True)
    note = {"number": int(name[:3]), "name": name, "status": "finished", "error": None, "point": point,
            "random_seed": 0, "parameters": 1000, "seconds": 9.0, **note}  # fmt: skip
    (trial / "trial.json").write_text(json.dumps(note))
    (trial / "config.yaml").write_text("data: {batch_size: 64}\nadapter: {format: tr}\n")
    if value is None:
        return
    by_task = {f"val/knn10/{task}": value + shift for task, shift in zip(TASKS, (0.02, -0.02), strict=True)}
    records: list[dict[str, float]] = [{"train/images_per_second": rate} for rate in (1000, rate, rate)]
    records += [{"val/knn10": 0.1, "val/loss": 3.0}, {"val/knn10": value, "val/loss": 1 - value, **by_task}]
    if note["status"] == "finished":
        records.append({"test/knn10": value - 0.01})
    lines = [json.dumps({"step": i, "time": 1.0, "metrics": metrics}) for i, metrics in enumerate(records)]
    (trial / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_original(folder: Path, value: float = 0.364, images: int = 50) -> None:
    """Leave what each finished trial of a campaign has found of the backbone without adapters."""
    votes = {"uniform": {"10": value}, "weighted": {"10": value}}
    original = {"overall": votes, "by_domain": {}, "queries": dict.fromkeys(TASKS, images)}
    for file in folder.glob("trials/*/trial.json"):
        if json.loads(file.read_text())["status"] == "finished":
            file.with_name("knn.json").write_text(json.dumps({"original": original}))


def write_plan(folder: Path, **campaign: Any) -> Path:
    folder.mkdir(parents=True)
    campaign = {"space": "paper", "metric": "val/knn10", "mode": "max", "searcher": "optuna", "scheduler": "asha",
                "repeats": 1, **campaign}  # fmt: skip
    config = {"data": {"batch_size": 64}, "adapter": {"format": "tr"}}
    (folder / "campaign.yaml").write_text(yaml.safe_dump({"campaign": campaign, "config": config}))
    return folder


def write_campaign(folder: Path, points: int = 10, repeats: int = 1) -> Path:
    """Make up a campaign: so many points of each of four formats, a few of them stopped or failed."""
    write_plan(folder, repeats=repeats)
    generator = np.random.default_rng(0)
    gain = {"lora": 0.80, "multi_lora": 0.82, "cp": 0.88, "tr": 0.91}
    number = 0
    for index in range(points):
        for format, base in gain.items():
            rank = int(generator.choice([2, 3, 4] if format == "tr" else [4, 8, 16]))
            lr = float(f"{10 ** generator.uniform(-3, -1.5):.4g}")
            point = {"format": format, "rank": rank, "lr": lr}
            size = 1800 * rank * (rank if format == "tr" else 4 if format == "multi_lora" else 1)
            if format in ("cp", "tr"):
                point["mapping_depth"] = int(generator.integers(1, 4))
                size += 30_000 + 1100 * point["mapping_depth"]
            value = base + 0.015 * np.log2(rank) - 0.05 * np.log10(lr / 0.008) ** 2
            step = 9 + 1.5 * np.log2(rank) + 6 * (format in ("cp", "tr")) + generator.normal()
            status = "stopped" if index % 4 == 3 else "failed" if (index, format) == (1, "cp") else "finished"
            for seed in range(repeats):
                score = None if status == "failed" else float(value + generator.normal(0, 0.006))
                error = "Traceback\nRuntimeError: out of memory | 3 GiB" if status == "failed" else None
                write_trial(folder, f"{number:03d}-{format}-s{seed}", point, score, 64_000 / step, status=status,
                            error=error, random_seed=seed, parameters=size)  # fmt: skip
                number += 1
    return folder


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_campaign(tmp_path_factory.mktemp("runs") / "many", repeats=2)
    write_trial(folder, "998-tr-s0", {"format": "tr", "rank": 4, "lr": 0.5}, None, status="running", parameters=None)
    write_original(folder)
    write_report(folder)
    return folder


def test_the_report_has_all_its_parts(campaign: Path) -> None:
    report = campaign / "report"
    assert sorted(path.name for path in report.iterdir()) == [*PICTURES, "report.md"]
    text = (report / "report.md").read_text()
    for part in ("# Campaign many\n", "Search: space paper; searcher optuna; scheduler asha; repeats 2.",
                 "Objective: `val/knn10`, the larger the better.", "81 trials: 62 finished", "First by val/knn10: **",
                 "## Which to take?", "### format", "### rank, with cp", "cannot be told apart",
                 "## Leaderboard", "## Score and cost", "## Rank", "fANOVA of Optuna, on 31 finished points",
                 "## Tasks", "| photo |", "## Failures", "RuntimeError: out of memory \\| 3 GiB",
                 "over 2 repeats"):  # fmt: skip
        assert part in text, part
    assert "None" not in text
    assert "nan" not in text


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_coloured_and_not_small(campaign: Path, name: str) -> None:
    with Image.open(campaign / "report" / name) as image:
        assert min(image.size) >= 250
        pixels = np.array(image.convert("RGB")).reshape(-1, 3)
    assert (np.ptp(pixels.astype(int), axis=1) > 80).mean() > 0.001


def test_a_trial_is_read(tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "one")
    write_trial(folder, "000", {"rank": 4}, 0.9, random_seed=3)
    (trial,) = read_campaign(folder).trials
    assert (trial.name, trial.status, trial.format, trial.point, trial.random_seed) == (
        "000",
        "finished",
        "tr",
        {"rank": 4},
        3,
    )
    assert (trial.value, trial.test, trial.parameters) == (0.9, 0.89, 1000)
    assert trial.step_ms == pytest.approx(20)  # 64 images at 3200 a second
    assert trial.tasks == {"photo": 0.92, "sketch": 0.88}


def test_one_trial_makes_a_report(tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "one")
    write_trial(folder, "000", {"format": "tr", "rank": 4})
    text = (write_report(folder) / "report.md").read_text()
    assert "1 trial: 1 finished." in text
    assert "First by val/knn10: **tr, rank 4**: 90.0 %, 1,000 trained parameters, 20.0 ms per step." in text
    assert text.count("Pictures left out: ") == 1
    assert "importance of the settings (takes 10 finished points that differ, there are 1)" in text
    assert "](" not in text, "a picture that is not there"
    assert sorted(path.name for path in (folder / "report").iterdir()) == ["report.md"]


@pytest.mark.parametrize("trials", ["no folder", "begun", "failed", "garbage", "not finite"])
def test_campaigns_without_a_result_make_a_report(tmp_path: Path, trials: str) -> None:
    folder = write_plan(tmp_path / "none")
    if trials == "begun":
        write_trial(folder, "000", {"format": "tr"}, None, status="running", parameters=None)
        (folder / "trials" / "001").mkdir()
    elif trials == "failed":
        write_trial(folder, "000", {"format": "tr"}, None, status="failed", error="it broke")
    elif trials == "garbage":
        write_trial(folder, "000", {"format": "tr"})
        (folder / "trials" / "000" / "trial.json").write_text('{"name": ')
        write_trial(folder, "001", {"format": "tr"})
        (folder / "trials" / "001" / "metrics.jsonl").write_text('{"step": "many"}')
    elif trials == "not finite":
        write_trial(folder, "000", {"format": "tr"}, float("nan"))
    text = (write_report(folder) / "report.md").read_text()
    assert "No trial has finished with a value, so there is nothing to rank." in text
    assert ("| 000 | it broke |" in text) == (trials == "failed")
    assert ("2 trials: 2 unreadable." in text) == (trials == "garbage")
    assert ("metrics.jsonl, line 1, cannot be read: step = 'many'" in text) == (trials == "garbage")
    assert [path.name for path in (folder / "report").iterdir()] == ["report.md"]


def test_images_come_from_the_plan_or_from_the_trials(tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "two")
    for number, format in enumerate(("tr", "lora")):
        write_trial(folder, f"{number:03d}", {"format": format}, 0.9 - number / 100)
    write_original(folder)
    old = read_campaign(folder)
    assert (old.count("val/knn10"), old.count("test/knn10"), old.original) == (None, 100, 0.364)
    assert "100 test images: one image is 1.0 points." in (write_report(folder) / "report.md").read_text()
    plan = yaml.safe_load((folder / "campaign.yaml").read_text())
    plan["images"] = {"val": {"photo": 40, "sketch": 41}, "test": {"photo": 10, "sketch": 10}}
    (folder / "campaign.yaml").write_text(yaml.safe_dump(plan))
    assert (read_campaign(folder).count("val/knn10"), read_campaign(folder).count("test/knn10")) == (81, 20)
    plan["images"]["val"]["photo"] = -1
    (folder / "campaign.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(UserError, match=r"images\.val\.photo = -1"):
        read_campaign(folder)


def test_a_smaller_loss_is_better_and_tasks_come_from_knn(tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "loss", metric="val/loss", mode="min", objectives=["val/loss", "parameters"])
    for number, value in enumerate((0.6, 0.9, 0.7)):
        write_trial(folder, f"{number:03d}", {"format": "tr", "rank": number + 1}, value)
    text = (write_report(folder) / "report.md").read_text()
    assert "Objective: `val/loss`, the smaller the better; also optimized: `parameters`." in text
    assert "First by val/loss: **tr, rank 2**: 0.1," in text
    assert "| photo | - | 92.0 |" in text


def test_costs_can_lead(tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "costs", metric="parameters", mode="min")
    write_trial(folder, "000", {"format": "tr"}, result={"parameters": 1000.0, "val/knn10": 0.9})
    assert read_campaign(folder).trials[0].value == 1000


def test_a_report_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "one")
    write_trial(folder, "000", {"format": "tr", "rank": 4})
    (folder / "report").mkdir()
    (folder / "report" / "old.png").touch()
    write_report(folder)
    assert not (folder / "report" / "old.png").exists()


def test_the_command_prints_a_short_leaderboard(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([campaign.name, "--output", str(campaign.parent)])
    printed = capsys.readouterr().out
    assert "campaign many" in printed
    assert "First by val/knn10: cp" in printed
    assert re.search(r"^format +(cp cannot|these cannot) ", printed, re.MULTILINE)
    assert re.search(r"^ +original +- .* 36\.4 ", printed, re.MULTILINE)
    assert f"report    {campaign / 'report' / 'report.md'}" in printed


def test_what_cannot_be_reported_is_refused_in_a_line(campaign: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no campaign 'man' in .*, did you mean 'many'\? \(there: many\)"):
        main(["man", "--output", str(campaign.parent)])
    folder = write_plan(tmp_path / "odd", mode="up")
    with pytest.raises(UserError, match=r"campaign\.yaml' cannot be read: campaign\.mode = 'up'"):
        write_report(folder)
