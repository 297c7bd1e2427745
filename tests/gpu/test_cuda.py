"""What only a CUDA device shows: bfloat16, channels_last, compilation, NCCL."""

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

import metalora
from tests.integration.helpers import knn, series, train_small

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FORMATS = ["lora", "multi_lora", "cp", "tr"]


def model_of(format: str) -> metalora.MetaLoRAModel:
    """A ResNet-18 with adapters that change something, and seeds that differ from image to image."""
    torch.manual_seed(0)
    model = metalora.adapt(resnet18(), format=format, rank=4, input_size=(3, 64, 64))
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if name.endswith(("up.weight", "heads.weight")):
                parameter.normal_(std=0.05)
    return model.eval()


@pytest.mark.parametrize("kernel", ["plain", "fused"])
@pytest.mark.parametrize("format", FORMATS)
def test_bfloat16_channels_last_is_near_float64(format: str, kernel: str) -> None:
    model = model_of(format)
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        condition = model.extractor(images) if model.extractor else None
        wanted = model.double()(images.double(), condition)
        model.float().cuda().to(memory_format=torch.channels_last)
        if kernel == "fused":
            assert model.train().network.fuse((3, 64, 64), torch.bfloat16) == 19
        with torch.autocast("cuda", torch.bfloat16):
            placed = images.cuda().to(memory_format=torch.channels_last)
            met = model(placed, None if condition is None else condition.cuda())
    assert (met.cpu().double() - wanted).norm() / wanted.norm() < 2e-2


@pytest.mark.parametrize("format", FORMATS)
def test_compiled_step_is_not_recompiled(format: str) -> None:
    model = model_of(format).cuda().train()
    network = torch.compile(model.network, fullgraph=True)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-4)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(4):
            images = torch.randn(8, 3, 64, 64, device="cuda")
            condition = model.extractor(images) if model.extractor else None
            with torch.autocast("cuda", torch.bfloat16):
                loss = network(images, condition).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            assert torch.isfinite(loss), step


@pytest.mark.parametrize(
    "extra", [[], ["--compile"], ["--activation-checkpointing"]], ids=["eager", "compile", "recompute"]
)
def test_trains_in_this_process(tree: Path, tmp_path: Path, extra: list[str]) -> None:
    run = train_small(tmp_path, tree, "run", "--workers", "0", "--epochs", "8", *extra)
    losses = list(series(run, "train/loss").values())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("format", ["lora", "tr"])
def test_cuda_graph_changes_no_loss(tree: Path, tmp_path: Path, format: str) -> None:
    common = ["--workers", "0", "--epochs", "4", "--loader-workers", "0", "--precision", "float32", "--format", format]
    eager = train_small(tmp_path, tree, "eager", *common)
    graph = train_small(tmp_path, tree, "graph", *common, "--cuda-graph")
    assert list(series(graph, "train/loss").values()) == pytest.approx(
        list(series(eager, "train/loss").values()), rel=1e-3
    )
    assert knn(graph) == knn(eager)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trains_on_ray_with_nccl(tree: Path, tmp_path: Path) -> None:
    """One worker a GPU; the losses are those of one process."""
    workers = torch.cuda.device_count()
    common = ["--epochs", "8", "--precision", "float32"]
    run = train_small(tmp_path, tree, "ray", "--workers", str(workers), *common)
    alone = train_small(tmp_path, tree, "alone", "--workers", "0", *common)
    assert list(series(run, "train/loss").values())[:3] == pytest.approx(
        list(series(alone, "train/loss").values())[:3], rel=2e-3
    )
    assert set(knn(run)["adapted"]["by_domain"]) == {"paper", "slate"}
