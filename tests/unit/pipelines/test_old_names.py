"""Files of older code: settings under the names they had then."""

from dataclasses import replace
from pathlib import Path

import pytest

from metalora.config import from_dict
from metalora.errors import UserError
from pipelines.campaign.plan import Plan
from pipelines.campaign.report import read_campaign
from pipelines.campaign.trials import TrialSpec, read_trials
from pipelines.cli import main
from pipelines.command_line import make_parser, parse
from pipelines.options import add_settings, resolve
from pipelines.run.folder import read_settings

CAMPAIGN = """\
campaign:
  {space: mine.py, searcher: random, scheduler: none, objectives: [val/knn3], seeds: 2, trials: 3, hours: null,
   total_epochs: null, grid_points: 4, grace_epochs: 1, reduction_factor: 3.0, search_seed: 0, concurrent_trials: null,
   share_images: true, metric: val/knn3, mode: max}
space:
- {rank: "choice(2, 3)"}
config:
  train: {epochs: 2, seed: 7}
data: abc
"""
TRIAL = """\
{"number": 1, "point": {"rank": 2}, "seed": 8, "name": "001-r2-s8", "status": "finished", "error": null,
 "parameters": 10, "seconds": 1.5, "run_id": null, "result": {"val/knn3": 0.5}, "checkpoint": null}
"""
CONFIG = """\
train:
  epochs: 2
  seed: 7
"""


@pytest.fixture
def resolved(tmp_path):
    """Resolve a command line above a file of older code."""
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG)
    parser = make_parser("metalora train", "")
    parser.add_argument("--config")
    add_settings(parser)
    return lambda *line: resolve(parse(parser, ["--config", str(file), *line]))


def test_the_random_seed_is_read_by_its_old_name():
    assert from_dict({"train": {"seed": 7}}).train.random_seed == 7
    with pytest.raises(UserError, match=r"train\.seed is now called train\.random_seed"):
        from_dict({"train": {"seed": 7, "random_seed": 8}})


def test_the_command_line_is_above_an_old_file(resolved):
    assert resolved().train.random_seed == 7
    assert resolved("--seed", "3").train.random_seed == 3
    assert resolved("--random-seed", "3").train.random_seed == 3
    assert resolved("--random-seed", "3").train.epochs == 2


def test_a_value_that_will_not_do_is_told_by_the_new_name(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {seed: -1}\n")
    with pytest.raises(UserError, match=r"config\.yaml' cannot be read: train\.random_seed = -1"):
        read_settings(tmp_path)


def test_a_run_of_older_code_goes_on(settings, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(settings("--run-name", "mine", "--seed", "5"))
    file = Path("runs/mine/config.yaml")
    text = file.read_text()
    assert "  random_seed: 5\n" in text
    file.write_text(text.replace("  random_seed: 5\n", "  seed: 5\n"))
    main(["train", "--resume", "mine"])
    assert file.read_text() == text
    assert refused(["train", "--resume", "mine", "--seed", "6"]).startswith(
        "mine cannot be resumed, its settings changed: train.random_seed was 5, is 6"
    )


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """The folder of runs with a campaign of older code, ``c``, and the space that it searches."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "c"
    (folder / "trials" / "001-r2-s8").mkdir(parents=True)
    (folder / "campaign.yaml").write_text(CAMPAIGN)
    (folder / "trials" / "001-r2-s8" / "trial.json").write_text(TRIAL)
    space = "from ray import tune\nSPACE = [{'rank': tune.choice([2, 3])}]\nCAMPAIGN = {'seeds': 3}\n"
    Path("mine.py").write_text(space)
    return folder


def plans(arguments, monkeypatch):
    """Return the plan that a command line of ``metalora tune`` makes."""
    made = []
    monkeypatch.setattr("pipelines.commands.tune.run_campaign", lambda plan, resume, dry_run: made.append(plan))
    main(["tune", *arguments])
    return made[0]


def test_a_campaign_of_older_code_goes_on(campaign, monkeypatch):
    plan = plans(["--resume", "c", "--space", "mine.py"], monkeypatch)
    assert (plan.campaign.repeats, plan.campaign.trials, plan.config.train.random_seed) == (2, 3, 7)
    assert list(plan.random_seeds()) == [7, 8]
    replace(plan, fingerprint="abc").check_same(campaign)
    changed = replace(plan.config, train=replace(plan.config.train, random_seed=9))
    with pytest.raises(UserError, match=r"campaign\.repeats was 2, is 5; train\.random_seed was 7, is 9"):
        Plan(replace(plan.campaign, repeats=5), changed, plan.space, "abc").check_same(campaign)
    (record,) = read_trials(campaign)
    assert record.trial == TrialSpec(1, {"rank": 2}, 8, "001-r2-s8")
    record.write(campaign / "trials" / "001-r2-s8")
    assert read_trials(campaign) == [record]
    assert '"random_seed": 8' in (campaign / "trials" / "001-r2-s8" / "trial.json").read_text()


def test_a_campaign_of_older_code_is_reported(campaign):
    found = read_campaign(campaign)
    assert found.search["repeats"] == 2
    assert [trial.random_seed for trial in found.trials] == [8]


@pytest.mark.parametrize(
    ("line", "repeats"), [([], 3), (["--repeats", "2"], 2), (["--seeds", "2"], 2), (["--config", "c.yaml"], 4)]
)
def test_a_space_of_older_code_is_searched(campaign, monkeypatch, line, repeats):
    Path("c.yaml").write_text("campaign: {seeds: 4}\n")
    plan = plans(["--space", "mine.py", *line], monkeypatch)
    assert plan.campaign.repeats == repeats
    Path("old.py").write_text("SPACE = [{'rank': 2}]\nSETTINGS = {'seed': 5}\n")
    assert plans(["--space", "old.py"], monkeypatch).config.train.random_seed == 5


def test_a_name_given_twice_is_refused(campaign, refused):
    Path("two.py").write_text("SPACE = [{'rank': 2}]\nCAMPAIGN = {'seeds': 1, 'repeats': 2}\n")
    said = refused(["tune", "--space", "two.py"])
    assert said == "space 'two.py': campaign.seeds is now called campaign.repeats: give it under that name only"
    Path("two.yaml").write_text("train: {seed: 1, random_seed: 1}\n")
    assert "file 'two.yaml': train.seed is now called train.random_seed" in refused(["train", "--config", "two.yaml"])


def test_a_table_of_older_code_goes_on(campaign, monkeypatch):
    folder = campaign.with_name("t")
    folder.mkdir()
    table = "table: {backbones: [resnet20], formats: [lora, cp], tuning_seeds: 2, fresh_seeds: 3}\nconfig: {}\n"
    (folder / "table.yaml").write_text(table)
    made = []
    monkeypatch.setattr("pipelines.commands.reproduce.reproduce", lambda table, *rest: made.append(table))
    main(["reproduce", "table1", "--resume", "t"])
    main(["reproduce", "table1", "--resume", "t", "--fresh-seeds", "4"])
    assert [(table.tuning_repeats, table.fresh_repeats) for table in made] == [(2, 3), (2, 4)]
    written = (folder / "table.yaml").read_text()
    assert "fresh_repeats: 4" in written
    assert "fresh_seeds" not in written


def test_help_shows_the_new_names(capsys):
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    said = capsys.readouterr().out
    assert "--repeats" in said
    assert "--seeds" not in said
    assert "--random-seed N, --seed N" in said
