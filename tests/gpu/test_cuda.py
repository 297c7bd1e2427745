"""What only a CUDA device shows: bfloat16, channels_last, compilation, NCCL."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

import metalora
from metalora.train.activation_checkpointing import checkpoint_blocks
from tests.integration.helpers import knn, series, train_small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),  # advice, not asked for
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler uses old parts of torch
]

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


@pytest.mark.parametrize("kernel", ["plain", "fused"])
@pytest.mark.parametrize("format", FORMATS)
def test_compiled_step_is_the_eager_one_and_not_recompiled(format: str, kernel: str) -> None:
    model = model_of(format).cuda().to(memory_format=torch.channels_last).train()
    if kernel == "fused":
        assert model.network.fuse((3, 64, 64), torch.bfloat16) == 19
    compiled = torch.compile(model.network, fullgraph=True)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-4)

    def step(network: torch.nn.Module, images: Tensor) -> dict[str, Tensor]:
        """Return the output and the gradients of a batch."""
        optimizer.zero_grad()
        condition = model.extractor(images) if model.extractor else None
        with torch.autocast("cuda", torch.bfloat16):
            y = network(images, condition)
        y.float().square().mean().backward()
        gradients = {name: parameter.grad.double() for name, parameter in model.trainable().items()}
        # of plain layers a compiler rounds other intermediate results, and gradients of a random network magnify that
        return {"output": y.detach().double(), **(gradients if kernel == "fused" else {})}

    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            images = torch.randn(8, 3, 64, 64, device="cuda").to(memory_format=torch.channels_last)
            eager, met = step(model.network, images), step(compiled, images)
            for name, wanted in eager.items():
                assert (met[name] - wanted).norm() <= 2e-2 * wanted.norm(), name
            optimizer.step()


def test_a_fused_output_may_be_changed_in_place() -> None:
    def changed(in_place: bool) -> list[Tensor]:
        torch.manual_seed(0)
        body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 24, 3), torch.nn.Hardswish(in_place))
        network = torch.nn.Sequential(body, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        model = metalora.adapt(network, format="lora", rank=2, input_size=(3, 16, 16)).cuda().train()
        assert model.network.fuse((3, 16, 16), torch.bfloat16) == len(model.layers)
        with torch.autocast("cuda", torch.bfloat16):
            y = model(torch.randn(2, 3, 16, 16, device="cuda", generator=torch.Generator("cuda").manual_seed(0)))
        y.sum().backward()
        return [y, *(parameter.grad for parameter in model.trainable().values())]

    for met, wanted in zip(changed(True), changed(False), strict=True):
        assert torch.equal(met, wanted)


@pytest.mark.parametrize("by", ["ours", "the network"])
@pytest.mark.parametrize("format", ["lora", "tr"])
def test_layers_recomputed_by_autograds_thread_read_their_own_seeds(format: str, by: str) -> None:
    """Two forward passes before one backward pass; float64, so that other kernels make no difference."""
    model = model_of(format).double().cuda().train()
    images = torch.randn(4, 3, 64, 64, device="cuda", dtype=torch.float64)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        (model(images).square().sum() + model(images[:3].flip(0)).sin().sum()).backward()
        return {name: parameter.grad.clone() for name, parameter in model.trainable().items()}

    wanted = gradients()
    if by == "ours":
        checkpoint_blocks(model.network.backbone)
    else:
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            block = model.network.backbone.get_submodule(stage)[1]
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-8, atol=1e-8 * float(wanted[name].abs().max()))


def test_threads_that_share_a_model_get_their_own_answers() -> None:
    model = model_of("tr").double().cuda()
    batches = [torch.randn(1 + i % 3, 3, 64, 64, device="cuda", dtype=torch.float64) for i in range(8)]
    answer = torch.no_grad()(lambda x: model(x))
    wanted = [answer(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for met, alone in zip(pool.map(answer, batches), wanted, strict=True):
                torch.testing.assert_close(met, alone)


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--no-cuda-graph"],
        ["--compile"],
        ["--compile", "--no-cuda-graph"],
        ["--activation-checkpointing"],
        ["--activation-checkpointing", "--compile"],
    ],
    ids=str,
)
def test_trains_in_this_process(tree: Path, tmp_path: Path, extra: list[str]) -> None:
    run = train_small(tmp_path, tree, "run", "--workers", "0", "--epochs", "8", *extra)
    losses = list(series(run, "train/loss").values())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("precision", "near"), [("float32", 1e-3), ("bfloat16", 2e-2)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("extra", [[], ["--compile"]], ids=["eager", "compile"])
@pytest.mark.parametrize("format", ["lora", "tr"])
def test_cuda_graph_changes_no_loss(
    tree: Path, tmp_path: Path, format: str, extra: list[str], precision: str, near: float
) -> None:
    common = ["--workers", "0", "--epochs", "4", "--loader-workers", "0", "--precision", precision, "--format", format]
    launched = train_small(tmp_path, tree, "launched", *common, *extra, "--no-cuda-graph")
    graph = train_small(tmp_path, tree, "graph", *common, *extra, "--cuda-graph")
    assert list(series(graph, "train/loss").values()) == pytest.approx(
        list(series(launched, "train/loss").values()), rel=near
    )
    for run, captured in ((launched, 0), (graph, 1)):
        [fused], [replayed] = (series(run, f"train/{way}").values() for way in ("fused_convolutions", "cuda_graph"))
        assert (fused > 0, replayed) == (precision == "bfloat16", captured)


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
