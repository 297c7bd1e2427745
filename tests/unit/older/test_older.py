"""Adapters, runs and a campaign of older code, from before methods had options of their own: they load and go on.

``files/`` holds them as they were written, but for paths: what they name lies beside ``project/``. ``expected/`` has
what an uninterrupted training of that code came to.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import metalora
from metalora.models.persist import describe
from pipelines.cli import main

FILES = Path(__file__).with_name("files")


@pytest.fixture
def net() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    net.load_state_dict(torch.load(FILES / "net.pt", weights_only=True))
    return net.eval()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, in another place, where the user stands."""
    for name in ("data.parquet", "space.py"):
        shutil.copy(FILES / name, tmp_path)
    shutil.copytree(FILES / "project", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("format", ["lora", "multi_lora", "cp", "tr"])
def test_an_adapter_loads_and_gives_what_it_gave(format, net, tmp_path):
    expected = load_file(FILES / "outputs.safetensors")
    model = metalora.load(net, FILES / f"adapter-{format}")
    torch.testing.assert_close(model.logits(expected["images"]), expected[format])
    assert model.spec.format.name == format
    assert model.spec.format.options == ({"branches": 2} if format == "multi_lora" else {})
    metalora.save(model, tmp_path / "again")
    assert describe(tmp_path / "again").file_version == 2
    again = metalora.load(net, tmp_path / "again")
    assert torch.equal(again.logits(expected["images"]), model.logits(expected["images"]))


@pytest.mark.parametrize("run", ["branches", "turns"])
def test_a_run_goes_on_from_its_checkpoint_to_what_it_would_have_come_to(run, project):
    main(["train", "--resume", run])
    expected = load_file(FILES / "expected" / run / "adapter.safetensors")
    trained = load_file(project / "runs" / run / "adapter/adapter.safetensors")
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=1e-5)


def test_its_settings_are_shown_under_todays_names(project, capsys):
    main(["train", "--resume", "turns", "--print-config"])
    shown = capsys.readouterr().out
    for line in ("  random_seed: 0", "    tasks: one", "    classes: 2", "    temperature: 0.2", "  - in_turn"):
        assert f"\n{line}\n" in shown
    main(["train", "--resume", "branches", "--print-config"])
    shown = capsys.readouterr().out
    for line in ("  random_seed: 7", "    branches: 3", "    weight_decay: 0.1", "    label_smoothing: 0.1"):
        assert f"\n{line}\n" in shown
    assert "episode" not in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--format.branches", "4"), "adapter.format was 'multi_lora(branches=3)', is 'multi_lora(branches=4)'"),
        (("--optimizer.weight_decay", "0.2"), "train.optimizer was "),
        (("--random-seed", "1"), "train.random_seed was 7, is 1"),
    ],
)
def test_it_goes_on_under_its_own_settings_only(change, message, project, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--resume", "branches", *change])
    assert message in capsys.readouterr().err


def test_a_campaign_is_reported_and_known_to_be_complete(project, capsys):
    main(["report", "search"])
    text = (project / "runs/search/report/report.md").read_text()
    assert "6 finished" in text
    assert "8 test images: one image is 12.5 points." in text
    assert "| original | no adapter | - | - | 50.0 |" in text
    main(["tune", "--resume", "search", "--space", "space.py"])
    assert "000-lora-lr0.01-s0" in capsys.readouterr().out
