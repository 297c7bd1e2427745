"""Files of older code: settings under the names they had then."""

from pathlib import Path

import pytest

from metalora.config import from_dict
from metalora.errors import UserError
from pipelines.cli import main
from pipelines.options import add_settings, make_parser, parse, resolve
from pipelines.run.folder import read_settings

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
