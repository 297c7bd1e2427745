"""The words of messages: settings by their options, other people's words for them, paths that do not exist."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from metalora.config import SECTIONS, setting_sections
from metalora.errors import UserError, option
from metalora.registry import KINDS
from pipelines.campaign.plan import CampaignConfig
from pipelines.commands import train
from pipelines.options import settings_of

ROOT = Path(__file__).parents[3]
FIELDS = {field.name: field for kind in SECTIONS.values() for field in dataclasses.fields(kind)}
# a line with which a setting of text is not accepted
LINES: dict[str, tuple[str, ...]] = {
    **{name: (option(name), "nosuch") for name in KINDS},
    **{name: (option(name), "nosuch") for name in ("init_adapter", "target_modules", "exclude_modules", "backbone")},
    **{name: (option(name), "nosuch") for name in ("data", "exclude_domains", "holdout_domains", "modules_to_save")},
    "weights": ("--weights", "nosuch.pt"),
    "extractor": ("--extractor", "nosuch", "--format", "cp"),
    "extractor_weights": ("--extractor-weights", "nosuch.pt", "--extractor", "resnet20", "--format", "cp"),
    "monitor": ("--monitor", "nosuch", "--keep", "best"),
    "ray_address": ("--ray-address", "nosuch", "--workers", "1"),
    "output": ("--output", ""),
    "storage_path": ("--storage-path", ""),
    "tracking_uri": ("--tracking-uri", "nosuch"),
    "experiment": ("--experiment", " ", "--tracking-uri", "sqlite:///m.db"),
    "run_name": ("--run-name", "a/b"),
}


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def kinds_of(form: Any) -> set[Any]:
    """Return the types that a type is made of."""
    inner = get_args(form) if get_origin(form) is not Literal else ()
    return {form, get_origin(form)}.union(*map(kinds_of, inner)) if inner else {form, get_origin(form)}


def wrong(name: str) -> list[str]:
    """Return a line with which a setting is not accepted, whatever the others are."""
    kinds = kinds_of(FIELDS[name].type)
    if bool in kinds:
        return [f"{option(name)}=nosuch"]
    if dict in kinds:
        return [option(name), "module=nosuch"]
    assert kinds & {int, float, Literal}, f"{name}: give a wrong line in LINES"
    return [option(name), "nosuch"]


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in LINES])
def test_an_error_in_a_value_names_the_option(refused, name):
    said = refused(["train", *wrong(name)])
    assert re.search(rf"{option(name)}(?![\w-])", said)


@pytest.mark.parametrize("name", LINES)
def test_an_error_in_a_text_names_the_option(refused, settings, name):
    said = refused(settings(*LINES[name]))
    assert re.search(rf"{option(name)}(?![\w-])", said)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["--batch-size", "7", "--workers", "2"], "(--batch-size, --workers, --accumulate)"),
        (["--val-fraction", "0.6", "--test-fraction", "0.5"], "(--val-fraction, --test-fraction)"),
        (["--kernel", "fused", "--activation-checkpointing"], "(--kernel, --activation-checkpointing)"),
        (["--cuda-graph", "--seed-granularity", "task"], "(--cuda-graph, --seed-granularity)"),
        (["--keep", "best", "--validate-every", "0"], "(--keep, --patience, --validate-every)"),
        (["--class-sampling", "balanced", "--class-weights", "balanced"], "(--class-sampling, --class-weights)"),
        (["--exclude-domains", "a", "--holdout-domains", "a"], "(--exclude-domains, --holdout-domains)"),
        (["--format", "multi_lora", "--format.branches", "0"], "(--format.branches)"),
        (["--augment", "flip", "--augment.flip.probability", "2"], "(--augment.flip.probability)"),
        (["--format.branches", "2"], "(--format)"),
    ],
)
def test_an_error_in_two_settings_names_both_options(refused, line, named):
    assert refused(["train", *line]).endswith(named)


def test_an_error_of_a_campaign_or_a_table_names_the_option(refused):
    with pytest.raises(UserError, match=r"trials = 'many': .* \(--trials\)"):
        settings_of(CampaignConfig, {"trials": "many"}, "campaign")
    assert refused(["reproduce", "table1", "--fresh-repeats", "1"]).endswith("(--fresh-repeats)")


def messages() -> list[tuple[str, str, str]]:
    """Return where each error is made, its text and its code; not where arguments are named like settings."""
    found = []
    for file in sorted([*(ROOT / "metalora").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]):
        place = str(file.relative_to(ROOT))
        if place.startswith(("metalora/models/backbones/", "metalora/evaluate/")):
            continue  # `metalora.build` adds the options of backbone and extractor
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("UserError", "ValueError"):
                texts = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))
                found.append((f"{place}:{node.lineno}", "".join(texts), ast.unparse(node)))
    return found


# metalora/train is being rewritten elsewhere; these two have to get their `given_as` there
def test_messages_that_write_a_setting_with_an_underscore_end_with_its_option():
    names = "|".join(name for name in setting_sections() if "_" in name)
    written = re.compile(rf"(?<![\w.\-/'])({names})(?![\w('.])")
    for place, text, code in messages():
        for name in written.findall(text):
            assert option(name) in code or re.search(rf"given_as\([^)]*'{name}'", code), f"{place}: {code}"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--wd", "'--optimizer.weight-decay'"),
        ("--smoothing", "'--objective.label-smoothing'"),
        ("--temperature", "'--objective.temperature'"),
        ("--classes", "'--objective.classes'"),
        ("--num-branches", "'--format.branches'"),
        ("--mixup-alpha", "'--augment.mixup.alpha'"),
        ("--magnitude", "'--augment.rand_augment.magnitude'"),
        ("--learning-rate", "'--lr'"),
        ("--model", "'--backbone'"),
        ("--gpus", "'--gpus-per-worker'"),
        ("--bs", "'--batch-size'"),
    ],
)
def test_another_word_points_to_the_option(refused, word, meant):
    assert f"unknown option '{word}', did you mean {meant.replace('rand_augment', 'rand-augment')}?" in refused(
        ["train", word, "0.1"]
    )


@pytest.mark.parametrize("word", ["--betas", "--dropout", "--momentum"])
def test_a_word_that_nothing_means_points_nowhere(refused, word):
    assert refused(["train", word, "0.1"]) == f"unknown option '{word}' (metalora train --help lists all)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wd: 0.1", "did you mean optimizer: {name: NAME, weight_decay: VALUE} in section 'train'?"),
        ("train: {wd: 0.1}", "did you mean optimizer: {name: NAME, weight_decay: VALUE} in section 'train'?"),
        ("weight_decay: 0.1", "did you mean optimizer: {name: NAME, weight_decay: VALUE} in section 'train'?"),
        ("train: {magnitude: 3}", "did you mean augment: {name: rand_augment, magnitude: VALUE} in section 'train'?"),
    ],
)
def test_another_word_in_a_file_points_to_the_setting(refused, text, message):
    Path("c.yaml").write_text(text)
    assert message in refused(["train", "--config", "c.yaml"])


@pytest.mark.parametrize("word", ["wd", "learning_rate"])
def test_another_word_in_a_space_points_to_the_setting(refused, word):
    Path("mine.py").write_text(f"SPACE = [{{'{word}': 1}}]")
    meant = {"wd": "optimizer.weight_decay", "learning_rate": "lr"}[word]
    assert f"unknown setting '{word}', did you mean '{meant}'?" in refused(["tune", "--space", "mine.py"])


@pytest.mark.parametrize(
    ("line", "what", "given", "near"),
    [
        (("train", "--workers", "0", "--data", "phtos"), "data", "--data", "photos"),
        (("train", "--workers", "0", "--data", "photo.parqet"), "data", "--data", "photo.parquet"),
        (("data", "inspect", "phtos"), "data", "--data", "photos"),
        (("train", "--config", "nope.yaml"), "config file", "--config", "note.yaml"),
        (
            ("train", "--workers", "0", "--weights", "wieghts.pth"),
            "weights",
            "--backbone, --weights, --image-size",
            "weights.pth",
        ),
        (("train", "--init-adapter", "runs/mien"), "run", "--init-adapter", "mine"),
        (("train", "--resume", "runs/mien"), "run", None, "mine"),
        (("evaluate", "runs/mien"), "run", None, "mine"),
        (("seeds", "./runs/mien"), "run", None, "mine"),
        (("report", "runs/mien"), "campaign", None, "mine"),
        (("tune", "--space", "mime.py"), "space", "--space", "mine.py"),
    ],
)
def test_a_path_that_does_not_exist_is_told_with_the_nearest_one(refused, tmp_path, line, what, given, near):
    for name in ("photos", "runs/mine"):
        Path(name).mkdir(parents=True)
    for name in ("photo.parquet", "note.yaml", "weights.pth", "mine.py"):
        Path(name).touch()
    path = str(Path(line[-1]))
    ending = f" ({given})" if given else ""
    assert refused([*line]).startswith(
        f"{what}: no such file or folder: {path!r} (here: {tmp_path}), did you mean {near!r}?{ending}"
    )


@pytest.mark.parametrize("name", ["weights.ckpt", "folder/weights"])
def test_a_file_that_is_no_file_of_weights_is_no_name_of_weights(refused, settings, name):
    Path("folder").mkdir()
    Path(name).touch()
    assert refused(settings("--weights", name)).startswith(f"weights {name!r}: the name of a file of weights ends in ")


def test_a_file_is_the_nearest_to_the_name_of_a_space(refused):
    Path("shapes.py").touch()
    assert refused(["tune", "--space", "shapes"]).startswith("unknown space 'shapes', did you mean 'shapes.py'?")


def test_the_help_has_no_other_words(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert "--wd" not in capsys.readouterr().out
