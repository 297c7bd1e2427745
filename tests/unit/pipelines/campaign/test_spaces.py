"""Search spaces: those that come with the project, and users' own."""

import itertools
from pathlib import Path

import pytest

from metalora.config import Config, from_dict, to_dict
from metalora.errors import UserError
from pipelines.campaign.plan import CampaignConfig, Plan
from pipelines.campaign.spaces import check_values, grid, load_space, sample, sections_of, space_names
from pipelines.campaign.trials import TrialSpec
from pipelines.options import settings_of

STATIC = {"lora", "multi_lora"}
MAPPING_SETTINGS = set(to_dict(Config())["mapping"])


@pytest.mark.parametrize("name", space_names())
def test_every_space_is_valid_and_leaks_nothing(name):
    """No point gives a setting that its format does not have."""
    space = load_space(name)
    check_values(space, Config())
    settings_of(CampaignConfig, space.campaign, "campaign")
    points = [*grid(space, 3), *itertools.islice(sample(space, 0), 50)]
    assert points
    for point in points:
        config = from_dict(sections_of({**space.settings, **point}))
        assert config.adapter.format.name == point.get("format", Config().adapter.format.name)
        if point.get("format") in STATIC:
            assert not MAPPING_SETTINGS & point.keys()
        if point.get("format") != "multi_lora":
            assert "format.branches" not in point


def test_the_spaces_of_the_issue_are_there():
    assert {"paper", "formats", "ranks", "mapping", "quick"} <= set(space_names())
    ranks = grid(load_space("ranks"), 2)
    assert {(point["format"], point["rank"]) for point in ranks} == {
        (format, rank) for format in ("lora", "multi_lora", "cp", "tr") for rank in (4, 8, 16, 32)
    }
    assert load_space("formats").settings["parameter_budget"] > 0


def test_a_static_trial_keeps_the_mapping_net_of_the_plan():
    space = load_space("paper")
    plan = Plan(CampaignConfig(), Config(), space)
    lora = next(point for point in grid(space, 2) if point["format"] == "lora")
    tr = next(point for point in grid(space, 2) if point["format"] == "tr" and point["mapping_depth"] == 3)
    assert plan.trial_config(TrialSpec.of(0, tr, 5)).mapping.mapping_depth == 3
    config = plan.trial_config(TrialSpec.of(1, lora, 5))
    assert config.mapping == Config().mapping
    assert (config.train.random_seed, config.train.lr) == (5, lora["lr"])


def write(tmp_path, text):
    file = tmp_path / "mine.py"
    file.write_text("from ray import tune\n" + text)
    return str(file)


def test_a_users_space_by_file(tmp_path):
    space = load_space(write(tmp_path, """
SPACE = [{"format": "cp", "rank": tune.randint(2, 5), "lr": tune.loguniform(1e-3, 1e-1),
          "warmup_steps": tune.lograndint(1, 101), "optimizer.weight_decay": tune.uniform(0, 0.2)}]
SETTINGS = {"epochs": 3}
"""))  # fmt: skip
    points = grid(space, 3)
    assert len(points) == 3**4
    assert {point["rank"] for point in points} == {2, 3, 4}
    assert {point["lr"] for point in points} == {0.001, 0.01, 0.1}
    assert {point["warmup_steps"] for point in points} == {1, 10, 100}
    assert {point["optimizer.weight_decay"] for point in points} == {0.0, 0.1, 0.2}
    first, again = (list(itertools.islice(sample(space, 7), 20)) for _ in range(2))
    assert first == again
    assert len({point["lr"] for point in first}) == 20
    assert all(1e-3 <= point["lr"] <= 1e-1 and 2 <= point["rank"] <= 4 for point in first)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPACE = 3", "must define SPACE"),
        ("SPACE = []", "must define SPACE"),
        ("", "must define SPACE"),
        ("import nothing_like_this", "does not run: ModuleNotFoundError"),
        ("SPACE = [{'rnak': 3}]", "unknown setting 'rnak', did you mean 'rank'"),
        ("SPACE = [{'rank': tune.choice([4, -1])}]", "adapter.rank = -1"),
        ("SPACE = [{'lr': tune.uniform(-1, 1)}]", "train.lr = -1"),
        ("SPACE = [{'format': tune.choice(['cp']), 'backbone': 'resnet20'}]", "backbone is the same for a whole"),
        ("SPACE = [{'seed': tune.choice([1, 2])}]", "seed cannot be searched"),
        ("SPACE = [{'lr': 0.1}]\nSETTINGS = {'lr': 0.2}", "it stands in SETTINGS too"),
        ("SPACE = [{'lr': 0.1}]\nSETTINGS = {'leraning': 0.2}", "unknown setting 'leraning'"),
        ("SPACE = [{'lr': 0.1}]\nCAMPAIGN = 3", "CAMPAIGN must be a dict"),
        ("SPACE = [{'lr': tune.randn()}]", "no grid and no ends"),
        ("SPACE = [{'format.branches': 2}]", "adapter format 'tr' has no option 'branches'"),
        ("SPACE = [{'format': tune.choice(['multi_lora', 'lora']), 'format.branches': 2}]", "'lora' has no option"),
        ("SPACE = [{'branches': 2}]", "branches is now format.branches, an option of multi_lora, and format is 'tr'"),
        ("SPACE = [{'format': tune.choice(['multi_lora', 'cp']), 'branches': 2}]", "and format is 'cp'"),
    ],
)
def test_a_bad_space_is_said(tmp_path, text, message):
    with pytest.raises(UserError, match=r"mine\.py") as caught:
        check_values(load_space(write(tmp_path, text)), Config())
    assert message in str(caught.value)


@pytest.mark.parametrize("option", ["branches", "format.branches"])
def test_the_method_of_an_option_may_be_set_elsewhere(tmp_path, option):
    options = f"SPACE = [{{'{option}': tune.choice([2, 3])}}]\n"
    check_values(load_space(write(tmp_path, options)), from_dict({"adapter": {"format": "multi_lora"}}))
    space = load_space(write(tmp_path, options + "SETTINGS = {'format': 'multi_lora'}"))
    check_values(space, from_dict(sections_of(space.settings)))


def test_an_unknown_space_comes_with_the_nearest():
    with pytest.raises(UserError, match="unknown space 'papre', did you mean 'paper'"):
        load_space("papre")
    with pytest.raises(UserError, match=r"space: no such file or folder: 'absent\.py' \(here: .*\(--space\)"):
        load_space("absent.py")


@pytest.mark.parametrize("name", ["random", "numpy"])
def test_a_file_that_would_hide_a_module_is_refused(tmp_path, monkeypatch, name):
    """Ray's workers import from the folder that a command is started in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path(f"{name}.py").write_text("SPACE = [{'format': 'tr'}]\n")
    with pytest.raises(UserError, match=f"has the name of a Python module, {name}, which .*: rename the file"):
        load_space(f"{name}.py")
    Path(f"{name}_of_mine.py").write_text("SPACE = [{'format': 'tr'}]\n")
    assert load_space(f"{name}_of_mine.py").name == f"{name}_of_mine.py"
