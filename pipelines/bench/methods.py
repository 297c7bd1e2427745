"""The networks, and the methods to train them, that the benchmarks of a training step measure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora.adapters.formats import FORMATS
from metalora.errors import UserError
from metalora.models.adapt import adapt
from metalora.train.activation_checkpointing import checkpoint_blocks

CLASSES = 100
BRANCHES = 4


@dataclass(frozen=True)
class Network:
    """A network to adapt, from timm.

    Attributes:
        name: Name of the network in timm.
        entry: The module after which adapted layers begin.
        early: Pattern of the modules before the last stage.
        size: Side of its images.
    """

    name: str
    entry: str
    early: str
    size: int = 224


NETWORKS = {
    "resnet50": Network("resnet50", "maxpool", r"re:layer[123]\..*"),
    "convnext_tiny": Network("convnext_tiny", "stem", r"re:stages\.[012]\..*"),
    "mixer_b16": Network("mixer_b16_224", "stem", r"re:blocks\.\d\..*"),
    "vit_b16": Network("vit_base_patch16_224", "patch_embed", r"re:blocks\.\d\..*"),
    "resnet18_small": Network("resnet18", "maxpool", r"re:layer[123]\..*", 64),
}
BASELINES = ("frozen", "floor", "full", "peft")
METHODS = (*BASELINES, *(f"{format}+{kernel}" for format in FORMATS for kernel in ("plain", "fused")))


@dataclass(frozen=True)
class Step:
    """A training step of a network by one method.

    Attributes:
        run: Does one step.
        resize: Draws another batch with the given number of images.
        channels: Channels of an update; None without adapters.
        trained: Number of trained parameters, without the head's.
        fused: Number of fused convolutions.
    """

    run: Callable[[], None]
    resize: Callable[[int], None]
    channels: int | None
    trained: int
    fused: int = 0


def check_names(models: Sequence[str], methods: Sequence[str], known_methods: Sequence[str]) -> None:
    """Check that network and method names are known.

    Raises:
        UserError: a name is unknown; the message lists the choices.
    """
    for kind, asked, known in (("model", models, NETWORKS), ("method", methods, known_methods)):
        for name in asked:
            if name not in known:
                raise UserError(f"unknown {kind} {name!r} (choices: {', '.join(known)})")


def build(network: Network, method: str, rank: int, mode: str, batch: int, device: torch.device) -> Step:
    """Build the training step of a method, with a network of its own.

    Args:
        network: The network.
        method: A name in `METHODS`; ``+checkpointed`` recomputes the activations of blocks, ``+late`` adapts only the
            last stage.
        rank: Channels of an update.
        mode: ``eager`` or ``compiled``.
        batch: Images per step.
        device: Device of the step.
    """
    import timm

    torch.manual_seed(0)
    net = timm.create_model(network.name, num_classes=0).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm has zeros at the end of a block, which compute too fast
            nn.init.uniform_(module.weight, 0.5, 1)
    format, *how = method.split("+")
    size, fused, condition_size = (3, network.size, network.size), 0, None
    channels = rank if method == "peft" else None
    if format in FORMATS:
        early = [network.early] if "late" in how else []
        chosen = {"name": format, "branches": BRANCHES} if format == "multi_lora" else format
        model = adapt(net, chosen, _rank(format, rank), exclude_modules=early, input_size=size)
        if "checkpointed" in how:
            checkpoint_blocks(model.network.backbone)
        layer = next(iter(model.layers.values()))
        channels = layer.format.channels(layer.shape)
        net = model.to(device).to(memory_format=torch.channels_last).network.train()
        trained = list(model.trainable().values())
        if "fused" in how:
            fused = net.fuse(size, torch.bfloat16 if device.type == "cuda" else None)
        if model.extractor is not None:
            condition_size = model.spec.condition_size
    else:
        net, trained = _baseline(net, network, method, rank, device)

    def draw(batch: int) -> tuple[Tensor, ...]:
        """Return images and, where they are read, the extractor's features."""
        images = torch.randn(batch, *size, device=device).contiguous(memory_format=torch.channels_last)
        return (images,) if condition_size is None else (images, torch.randn(batch, condition_size, device=device))

    run, resize = _step(net, trained, draw, batch, method == "frozen", mode)
    counted = 0 if method == "floor" else sum(parameter.numel() for parameter in trained)
    return Step(run, resize, channels, counted, fused)


def _rank(format: str, channels: int) -> int:
    """Return the rank that gives a format about so many channels."""
    return {"tr": round(math.sqrt(channels)), "multi_lora": max(1, channels // BRANCHES)}.get(format, channels)


def _baseline(
    net: Any, network: Network, method: str, rank: int, device: torch.device
) -> tuple[nn.Module, list[nn.Parameter]]:
    net.requires_grad_(method == "full")
    if method == "peft":
        import peft

        names = list(adapt(net, "lora", 1, input_size=(3, network.size, network.size)).layers)
        net = peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names), net)
    net = net.to(device, memory_format=torch.channels_last)
    if method == "floor":  # a zero that is trained makes all that follows need gradients
        zero = nn.Parameter(torch.zeros((), device=device))
        net.get_submodule(network.entry).register_forward_hook(lambda module, inputs, y: y + zero)
        return net, [zero]
    return net, [parameter for parameter in net.parameters() if parameter.requires_grad]


def _step(
    net: nn.Module,
    trained: Sequence[nn.Parameter],
    draw: Callable[[int], tuple[Tensor, ...]],
    batch: int,
    forward_only: bool,
    mode: str,
) -> tuple[Callable[[], None], Callable[[int], None]]:
    inputs, labels = draw(batch), torch.empty(0)
    device = inputs[0].device
    cuda = device.type == "cuda"

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=cuda)

    with torch.no_grad(), autocast():
        head = nn.Linear(net(*(tensor[:2] for tensor in inputs)).shape[1], CLASSES, device=device)
    optimizer = torch.optim.AdamW([*trained, *head.parameters()], lr=1e-4, fused=cuda, capturable=cuda)
    if mode == "compiled":
        net.compile()

    def resize(batch: int) -> None:
        nonlocal inputs, labels
        optimizer.zero_grad(set_to_none=True)
        inputs = ()  # freed before the next are made
        inputs, labels = draw(batch), torch.randint(CLASSES, (batch,), device=device)

    def forward() -> None:
        with torch.no_grad(), autocast():
            net(*inputs)

    def train() -> None:
        with autocast():
            scores = head(net(*inputs))
        F.cross_entropy(scores.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    resize(batch)
    return (forward if forward_only else train), resize


class Captured:
    """A step that runs as one CUDA graph, captured at the first call on the current stream, not the default one.

    Args:
        step: The step; later steps may read only parameters and the optimizer's state from it.
        pool: Memory pool that graphs share which are never replayed at the same time.
    """

    def __init__(self, step: Callable[[], None], pool: Any) -> None:
        self.step = step
        self.pool = pool
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self.graph is None:
            for _ in range(3):  # what is made once is made now: kernels, workspaces, the optimizer's state
                self.step()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=self.pool, stream=torch.cuda.current_stream()):
                self.step()
        self.graph.replay()
