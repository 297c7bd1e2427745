"""One model called from several threads answers each as if it were alone."""

import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import metalora
from metalora.models.backbones.build import build_backbone
from metalora.tracking.served_model import AdapterModel, write_network

MakeModel = Callable[..., metalora.MetaLoRAModel]
THREADS, REPEATS = 8, 12


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(calls: list[Callable[[], Any]], repeats: int = REPEATS) -> list[list[Any]]:
    """Return what each call gives, again and again, in a thread of its own beside the others."""
    start = threading.Barrier(len(calls))
    found: list[list[Any]] = [[] for _ in calls]

    def run(i: int) -> None:
        start.wait()
        for _ in range(repeats):
            try:
                found[i].append(calls[i]())
            except Exception as error:
                found[i].append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def assert_as_alone(calls: list[Callable[[], Tensor]]) -> None:
    wanted = [call() for call in calls]
    for answers, alone in zip(at_once(calls), wanted, strict=True):
        for answer in answers:
            assert isinstance(answer, Tensor), answer
            assert torch.equal(answer, alone)


def batches() -> list[Tensor]:
    """Batches of different images, and of different sizes."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(1 + i % 3, 3, 16, 16, generator=generator) for i in range(THREADS)]


@pytest.mark.parametrize("features", ["stats", "pooled", "both"])
@pytest.mark.parametrize("format", ["lora", "cp", "tr"])
@torch.no_grad()
def test_predictions(format: str, features: str, lively: MakeModel) -> None:
    model = lively(format, extractor_features=features, labels=["a", "b"], modules_to_save=["norm"])
    assert_as_alone([lambda x=x: torch.no_grad()(model)(x) for x in batches()])


@torch.no_grad()
def test_calls_of_every_kind(lively: MakeModel, net: nn.Module) -> None:
    model = lively("tr", labels=["a", "b"], modules_to_save=["norm"])
    model.network.backbone.norm.weight.data.normal_()
    images = batches()

    def original(x: Tensor) -> Tensor:
        with model.disable_adapter():
            return model(x)

    def given(x: Tensor, seeds: Tensor) -> Tensor:
        with model.network.slot.given(seeds):
            return model.network(x)

    x = images[0]
    seeds = model.seed(x).flip(1)
    calls = [
        lambda: model(images[1]),
        lambda: original(images[2]),
        lambda: model.seed(images[3]),
        lambda: model.extractor(images[4]),
        lambda: model.logits(images[5]),
        lambda: given(x, seeds),
        lambda: original(images[7]),
        lambda: model(images[7]),
    ]
    assert_as_alone([lambda call=call: torch.no_grad()(call)() for call in calls])
    assert torch.equal(original(x), net(x))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_do_not_meet(copier: Any, lively: MakeModel) -> None:
    model = lively("tr", extractor_features="both")
    models = [model, copier(model)] * (THREADS // 2)
    assert_as_alone([lambda m=m, x=x: torch.no_grad()(m)(x) for m, x in zip(models, batches(), strict=True)])


def test_gradients(lively: MakeModel) -> None:
    model = lively("tr")
    trained = list(model.trainable().values())

    def gradients(x: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(model(x).square().sum(), trained)])

    assert_as_alone([lambda x=x: gradients(x) for x in batches()])


def test_seeds_end_with_their_call(lively: MakeModel, images: Tensor) -> None:
    model = lively("cp")
    model(images)
    with pytest.raises(RuntimeError, match="no seed: call the model, not its backbone"):
        model.network.backbone(images)
    with model.network.slot.given(model.seed(images)):
        assert torch.equal(model.network.backbone(images), model(images))


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def test_served_answers(lively: MakeModel, tmp_path: Path) -> None:
    backbone = build_backbone("resnet20", "none", 16)
    model = lively("tr", backbone=backbone, target_modules="auto", labels=["a", "b", "c"])
    write_network(backbone, str(tmp_path / "backbone.safetensors"))
    artifacts = {"adapter": metalora.save(model, tmp_path / "adapter"), "backbone": tmp_path / "backbone.safetensors"}
    serving = AdapterModel()
    serving.load_context(SimpleNamespace(artifacts=artifacts))  # type: ignore[arg-type]

    requests = [pd.DataFrame({"image": [png(10 * i + j) for j in range(1 + i % 3)]}) for i in range(THREADS)]
    calls = [lambda request=request: serving.predict(None, request, {"features": True}) for request in requests]
    wanted = [call() for call in calls]
    assert len({str(answer["features"][0]) for answer in wanted}) == THREADS
    for answers, alone in zip(at_once(calls), wanted, strict=True):
        for answer in answers:
            assert isinstance(answer, pd.DataFrame), answer
            pd.testing.assert_frame_equal(answer, alone, check_exact=True)
