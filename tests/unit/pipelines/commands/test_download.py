"""``metalora download``, without a network: what the libraries would fetch is put where they look for it."""

from pathlib import Path

import pytest
import torch
from torchvision import models

from metalora.models.backbones import build_backbone
from metalora.train.pretrain import RECIPES
from pipelines.cli import main


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def fake_fetch(monkeypatch):
    """Let torch write random weights where a download would have put them."""

    def load_state_dict_from_url(url, *arguments, **more):
        file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(models.resnet18().state_dict(), file)
        return torch.load(file, weights_only=True)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load_state_dict_from_url)


def test_published_weights_are_fetched_once(capsys, home, monkeypatch):
    fake_fetch(monkeypatch)
    line = ["download", "--backbone", "torchvision/resnet18", "--data", "photos"]
    main(line)
    file = home / "torch/hub/checkpoints" / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    assert file.is_file()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"backbone  torchvision/resnet18, weights default: now there, {file}"
    assert said[1] == f"data      {home}/photos: yours; all nodes must reach it"
    assert f"  TORCH_HOME={home}/torch" in said
    main(line)
    assert f"weights default: already there, {file}" in capsys.readouterr().out


def test_what_the_embedded_training_needs_is_made(capsys, monkeypatch, cache):
    random = {key: tensor.contiguous() for key, tensor in build_backbone("resnet20", "none").net.state_dict().items()}
    monkeypatch.setattr("metalora.train.pretrain._pretrain", lambda *given: random)  # a minute less
    monkeypatch.setitem(RECIPES["resnet20"], "version", -1)
    main(["download"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("training the embedded resnet20 on 3000 plain scans")
    assert said[1].startswith(f"backbone  resnet20, weights default: now there, {cache}/weights/resnet20-")
    main(["download"])
    first, second, *others = capsys.readouterr().out.splitlines()
    assert first.startswith(f"backbone  resnet20, weights default: already there, {cache}/weights/resnet20-")
    assert second.startswith(f"data      embedded: already there, {cache}/data/embedded-")
    assert f"  METALORA_CACHE={cache}" in others
    for line in (first, second):
        assert Path(line.rpartition(", ")[2]).is_file()


def test_a_file_and_random_weights_need_nothing(capsys, home):
    main(["download", "--weights", "none", "--data", "photos"])
    assert capsys.readouterr().out.splitlines() == [
        "backbone  resnet20, weights none: nothing to fetch",
        f"data      {home}/photos: yours; all nodes must reach it",
    ]


def test_both_networks_are_fetched_and_hubs_told_apart(capsys, home, monkeypatch):
    import timm

    fake_fetch(monkeypatch)
    create = timm.create_model
    monkeypatch.setattr("timm.create_model", lambda name, pretrained, **more: create(name, pretrained=False, **more))
    line = ["--backbone", "torchvision/resnet18", "--extractor", "timm/resnet10t", "--format", "cp", "--data", "photos"]
    main(["download", *line])
    said = capsys.readouterr().out
    assert "extractor timm/resnet10t, weights default: now there, " in said
    assert "models--timm--resnet10t.c3_in1k/snapshots" in said
    assert "HF_HUB_OFFLINE=1" in said
    assert f"TORCH_HOME={home}/torch" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--backbone", "nosuch"), "unknown backbone 'nosuch'"),
        (("--backbone", "torchvision/resnet18", "--weights", "V9"), "backbone 'torchvision/resnet18' has no weights"),
        (("--backbone", "timm/nosuch"), "unknown timm network 'nosuch'"),
        (("--weights", "nosuch.pt"), "weights: no such file or folder: 'nosuch.pt'"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(refused, given, message):
    assert refused(["download", *given]).startswith(message)


def test_without_a_network_the_error_names_the_options(refused, monkeypatch):
    def away(*arguments, **more):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", away)
    said = refused(["download", "--backbone", "torchvision/resnet18"])
    assert "could not be fetched (no route to host)" in said
    assert said.endswith("(--backbone, --weights, --image-size)")
