import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalora.config import SECTIONS, Config, setting_sections, to_dict
from metalora.errors import UserError
from metalora.reading import read_yaml
from pipelines.command_line import make_parser, parse
from pipelines.commands import train
from pipelines.options import add_settings, resolve

Resolve = Callable[..., Config]


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = make_parser("metalora train", "")
    parser.add_argument("--config")
    add_settings(parser)
    return parser


@pytest.fixture
def resolved(parser: argparse.ArgumentParser, tmp_path: Path) -> Resolve:
    """Resolve a command line, with a YAML file of this content if there is one."""

    def make(*arguments: str, file: str | None = None, base: dict[str, Any] | None = None) -> Config:
        if file is not None:
            (tmp_path / "c.yaml").write_text(file, encoding="utf-8")
            arguments = ("--config", str(tmp_path / "c.yaml"), *arguments)
        return resolve(parse(parser, arguments), base)

    return make


@pytest.mark.parametrize(
    ("place", "file", "in_file", "line", "on_line"),
    [
        ("adapter.rank", "8", 8, ["--rank", "16"], 16),
        ("train.lr", "1e-3", 1e-3, ["--lr", "2e-5"], 2e-5),
        ("train.lr", "0.5", 0.5, ["--lr=.25"], 0.25),
        ("train.compile", "true", True, ["--no-compile"], False),
        ("train.compile", "false", False, ["--compile"], True),
        ("adapter.target_modules", "[a, b]", ("a", "b"), ["--target-modules", "c*", "re:d[0-9]"], ("c*", "re:d[0-9]")),
        ("adapter.exclude_modules", "[a]", ("a",), ["--exclude-modules"], ()),
        ("evaluate.knn", "[1]", (1,), ["--knn", "2", "3"], (2, 3)),
        ("adapter.rank_pattern", "{a: 1}", {"a": 1}, ["--rank-pattern", "b=2", "re:c=d=3"], {"b": 2, "re:c=d": 3}),
        ("adapter.alpha_pattern", "{a: 1e-1}", {"a": 0.1}, ["--alpha-pattern", "b=.5"], {"b": 0.5}),
        ("adapter.alpha", "2", 2.0, ["--alpha", "none"], None),
        ("train.clip_norm", "null", None, ["--clip-norm", "2"], 2.0),
        ("train.clip_norm", "3", 3.0, ["--clip-norm", "null"], None),
        ("mapping.seed_scope", "shared", "shared", ["--seed-scope", "layer"], "layer"),
        ("tracking.tracking_uri", "none", "none", ["--tracking-uri", "none"], "none"),
        ("backbone.weights", "none", "none", ["--weights", "w.pt"], str(Path("w.pt").absolute())),
        ("tracking.run_name", "café", "café", ["--run-name", "x"], "x"),
    ],
)
def test_the_line_is_above_the_file_and_the_file_above_the_default(resolved, place, file, in_file, line, on_line):
    section, name = place.split(".")

    def value(config: Config) -> Any:
        return getattr(getattr(config, section), name)

    text = f"{section}:\n  {name}: {file}\n"
    assert value(resolved()) == value(Config())
    assert value(resolved(file=text)) == in_file
    assert value(resolved(*line)) == on_line
    assert value(resolved(*line, file=text)) == on_line


def test_the_file_leaves_its_sections_other_settings_alone(resolved):
    config = resolved("--lr", "1", file="train:\n  epochs: 3\n")
    assert config.train == dataclasses.replace(Config().train, epochs=3, lr=1.0)


@pytest.mark.parametrize("text", ["", "# nothing\n", "train: {}\n"])
def test_an_empty_file_changes_nothing(resolved, text):
    assert resolved(file=text) == Config()


def test_a_resumed_runs_settings_are_below_the_file(resolved):
    base = to_dict(resolved("--rank", "8", "--lr", "1", "--epochs", "2"))
    config = resolved("--epochs", "5", file="train:\n  lr: 2\n", base=base)
    assert (config.adapter.rank, config.train.lr, config.train.epochs) == (8, 2, 5)
    assert base == to_dict(resolved("--rank", "8", "--lr", "1", "--epochs", "2"))


@pytest.mark.parametrize(
    "line", [[], ["--rank-pattern", "a=2", "--alpha", "3", "--no-log-model", "--run-name", "x: y"]]
)
def test_a_printed_config_gives_the_same_config(resolved, capsys, line):
    train.main([*line, "--print-config"])
    assert resolved(file=capsys.readouterr().out) == resolved(*line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--btch-size", "3"], "unknown option '--btch-size', did you mean '--batch-size'?"),
        (["--num_workers", "2"], "unknown option '--num-workers', did you mean '--loader-workers' or '--workers'?"),
        (["--gpus", "2"], "unknown option '--gpus', did you mean '--gpus-per-worker'?"),
        (["--model", "resnet20"], "unknown option '--model', did you mean '--backbone'?"),
        (["--bs", "2"], "unknown option '--bs', did you mean '--batch-size'?"),
        (["--no-compil"], "unknown option '--no-compil', did you mean '--no-compile'?"),
        (["--rnk=3"], "unknown option '--rnk', did you mean '--rank'?"),
        (["--ran", "3"], "unknown option '--ran', did you mean '--rank'?"),  # no abbreviations
        (["--rank"], "argument --rank: expected one argument"),
        (["--rank", "four"], "adapter.rank = 'four': input should be a valid integer"),
        (["--rank-pattern", "a"], "--rank-pattern takes PATTERN=VALUE, got 'a'"),
        (["--rank-pattern", "a=b"], "adapter.rank_pattern.a = 'b': input should be a valid integer"),
        (["--rank", "none"], "adapter.rank = 'none': "),
        (["--config", "no.yaml"], "config file: no such file or folder: 'no.yaml' (here: "),
        (["--config", "."], "config file '.' cannot be read: Is a directory"),
    ],
)
def test_a_wrong_line_is_refused(resolved, line, message):
    with pytest.raises(UserError) as error:
        resolved(*line)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "unknown setting train.epoch, did you mean 'epochs'?"),
        ("trian: {epochs: 3}", "unknown section 'trian', did you mean 'train'?"),
        ("rank: 3", "unknown section 'rank', it belongs in section 'adapter'"),
        ("learning_rate: 3", "unknown section 'learning_rate', did you mean 'lr' in section 'train'?"),
        ("num_workers: 3", "did you mean 'loader_workers' in section 'data' or 'workers' in section 'cluster'?"),
        ("data: {learning_rate: 3}", "unknown setting data.learning_rate, did you mean 'lr' in section 'train'?"),
        ("format.branches: 3", "is written format: {name: NAME, branches: VALUE} in section 'adapter'"),
        ("adapter: {format.branches: 3}", "is written format: {name: NAME, branches: VALUE} in section 'adapter'"),
        ("adapter: {format: 3}", "adapter.format = 3: wanted a name, or {name: NAME, OPTION: VALUE}, got 3"),
        ("adapter: {branches: 2}", "branches is now format.branches, an option of multi_lora, and format is 'tr'"),
        ("train: 3", "section 'train' must hold settings, got 3"),
        ("train: {epochs: many}", "train.epochs = 'many': input should be a valid integer"),
        ("train: [", "cannot be read: while parsing"),
        ("- a\n- b\n", "must hold sections with settings, got ['a', 'b']"),
        ("3", "must hold sections with settings, got 3"),
    ],
)
def test_a_wrong_file_is_refused(resolved, text, message):
    with pytest.raises(UserError) as error:
        resolved(file=text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_section_that_is_no_mapping_is_named_despite_options_of_that_section(resolved):
    with pytest.raises(UserError, match="section 'train' must hold settings, got 3"):
        resolved("--lr", "1", file="train: 3")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"c\.yaml' cannot be read"):
        read_yaml(tmp_path / "c.yaml")


def test_every_setting_has_an_option_with_a_help_text(parser):
    options = {action.dest: action for action in parser._actions}
    for kind in SECTIONS.values():
        for field in dataclasses.fields(kind):
            action = options[field.name]
            assert f"--{field.name.replace('_', '-')}" in action.option_strings
            assert action.help.startswith(field.default.description.replace("%", "%%"))


def test_the_help_names_every_option_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in setting_sections():
        assert f"--{name.replace('_', '-')}" in text
    assert f"(default: {Config().train.lr})" in " ".join(text.split())
    assert f"(default: {', '.join(map(str, Config().evaluate.knn))})" in " ".join(text.split())


def test_a_run_is_looked_for_where_the_file_says_that_output_goes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "out" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("adapter: {rank: 7}\ntracking: {run_name: mine}\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text("cluster: {output: out}\n", encoding="utf-8")
    train.main(["--config", "c.yaml", "--resume", "mine", "--print-config"])
    assert yaml.safe_load(capsys.readouterr().out)["adapter"]["rank"] == 7


def test_a_run_is_looked_for_below_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "out" / "mine").mkdir(parents=True)
    (tmp_path / "out" / "mine" / "config.yaml").write_text("adapter: {rank: 7}\n", encoding="utf-8")
    train.main(["--output", "~/out", "--resume", "mine", "--print-config"])
    assert yaml.safe_load(capsys.readouterr().out)["adapter"]["rank"] == 7


MULTI = {"name": "multi_lora", "branches": 2}


@pytest.mark.parametrize(
    ("file", "line", "plain"),
    [
        ("adapter: {format: multi_lora}", ["--format.branches", "3"], {"name": "multi_lora", "branches": 3}),
        ("adapter: {format: {name: multi_lora, branches: 2}}", [], MULTI),
        ("adapter: {format: {name: multi_lora, branches: 2}}", ["--format", "multi_lora"], MULTI),
        ("adapter: {format: {name: multi_lora, branches: 2}}", ["--format", "lora"], "lora"),
        ("adapter: {format: lora}", ["--format.branches", "3", "--format", "multi_lora"], {**MULTI, "branches": 3}),
        ("adapter: {format: multi_lora, branches: 2}", [], MULTI),  # as older code had it
        ("adapter: {format: lora, branches: 4}", [], "lora"),  # likewise: it wrote every setting with its default
    ],
)
def test_a_method_and_its_options_come_from_file_and_command_line(file, line, plain, resolved):
    assert to_dict(resolved(*line, file=file))["adapter"]["format"] == plain


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("train: {callbacks: [in_turn]}", []),
        ("train: {callbacks: in_turn}", []),
        ("train: {callbacks: {name: in_turn}}", []),
        ("train: {callbacks: in_turn}", ["--callbacks", "in_turn"]),
        (None, ["--callbacks", "in_turn"]),
    ],
)
def test_one_method_is_a_list_of_one(file, line, resolved):
    assert to_dict(resolved(*line, file=file))["train"]["callbacks"] == ["in_turn"]


def test_older_settings_become_options_of_their_methods(resolved):
    file = "train: {objective: episodic, episode_tasks: in_turn, episode_classes: 3, weight_decay: 0.2, seed: 4}"
    train = to_dict(resolved(file=file))["train"]
    assert train["objective"] == {"name": "episodic", "classes": 3, "tasks": "one"}
    assert train["callbacks"] == ["in_turn"]
    assert train["optimizer"] == {"name": "adamw", "weight_decay": 0.2}
    assert train["random_seed"] == 4


@pytest.mark.parametrize(
    ("line", "file", "message"),
    [
        (["--branches", "2"], None, "option --branches is now written --format.branches"),
        (["--weight-decay", "2"], None, "option --weight-decay is now written --optimizer.weight-decay"),
        (["--format.branches", "2"], None, "adapter format 'tr' has no option 'branches'"),
        (["--format", "multi_lora", "--format.branches", "0"], None, "adapter format 'multi_lora': branches = '0': "),
        (["--format.branch", "2"], None, "unknown option '--format.branch', did you mean '--format.branches'?"),
        (["--learning-rate", "1"], None, "unknown option '--learning-rate', did you mean '--lr'?"),
        (["--callbacks", "in_trun"], None, "unknown callback 'in_trun', did you mean 'in_turn'?"),
        (["--callbacks", "in_turn", "in_turn"], None, "callback 'in_turn' is named twice"),
        ([], "adapter: {format: {branches: 2}}", "adapter.format = {'branches': 2}: wanted a name, or {name: NAME"),
        ([], "train: {callbacks: 3}", "train.callbacks = 3: "),
        (
            [],
            "adapter: {format: {name: multi_lora, branches: 2}, branches: 3}",
            "adapter.branches is now called adapter",
        ),
    ],
)
def test_methods_that_are_given_wrongly_are_one_error(line, file, message, resolved):
    with pytest.raises(UserError) as error:
        resolved(*line, file=file)
    assert message in str(error.value)


def test_methods_of_a_file_are_checked_by_its_name(
    resolved: Resolve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("train: {optimizer: {name: adamw, weight_decay: -1}}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"config file 'mine.yaml': optimizer 'adamw': weight_decay = -1"):
        resolved("--config", "mine.yaml")
