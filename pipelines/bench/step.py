"""``metalora bench step``: a training step by network, method, rank and kernel, against full fine-tuning and PEFT."""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora.adapters.formats import FORMATS
from metalora.errors import UserError
from metalora.models.adapt import adapt
from metalora.train.activation_checkpointing import checkpoint_blocks
from pipelines.backend.device import this_device
from pipelines.bench.common import Result, Size, Timing, positive, publish, read_options, timed, write

CLASSES = 100
BRANCHES = 4


@dataclass(frozen=True)
class Network:
    """A network to adapt, from timm.

    Attributes:
        name: Its name there.
        entry: The module after which adapted layers begin.
        early: Pattern of what lies before the last stage.
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
GRAPH = "+graph"
MODES = ("eager", f"eager{GRAPH}", "compiled", f"compiled{GRAPH}")
BURST = 5  # steps of a measurement on a GPU, back to back as in a training, where launches run ahead of the work
SIZES = {
    "batch": Size("images of a step", 4, 256),
    "repeats": Size(f"measurements of each method (on GPUs of {BURST} steps in a row)", 2, 10),
    "warmup": Size("measurements of each before those", 1, 2),
}


@dataclass(frozen=True)
class Step:
    """A way to train a network.

    Attributes:
        run: Does one step.
        resize: Draws another batch, of so many images.
        channels: Of an update; None if there is none.
        trained: Number of parameters that it trains, the head's left out.
        fused: Number of fused convolutions.
    """

    run: Callable[[], None]
    resize: Callable[[int], None]
    channels: int | None
    trained: int
    fused: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora bench step``.

    A step is forward, cross-entropy, backward and AdamW, in bfloat16 autocast and channels_last on GPUs; the
    extractor's features are given. The floor is the frozen network's forward and the gradients of all activations
    from the stem's output on, which every adapter of all layers has to wait for. All methods of a network, rank and
    mode run in one process and in turn. Modes: eager; compiled, by torch.compile; either with +graph: replayed as one
    CUDA graph, so that launches cost nothing.

    Raises:
        UserError: an unknown network or method, or a mode that the device does not have.
    """
    options = read_options("step", "Time a training step.", SIZES, arguments, _add_options)
    # Methods with unlike memory needs take turns: without this, torch's blocks for one do not fit the next.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    models = options.models or (["resnet18_small"] if options.small else ["resnet50"])
    device = this_device()
    modes = options.modes or (
        MODES[:1] if options.small else [mode for mode in MODES if device.type == "cuda" or GRAPH not in mode]
    )
    if any(GRAPH in mode for mode in modes) and device.type != "cuda":
        raise UserError(f"--modes {' '.join(modes)}: CUDA graphs need a GPU")
    check_names(models, options.methods, METHODS)
    options.methods = ["floor"] * ("floor" not in options.methods) + options.methods
    rows: list[dict[str, Any]] = []
    with torch.cuda.stream(torch.cuda.Stream() if device.type == "cuda" else None):  # the default cannot be captured
        for model in models:
            for rank in options.ranks:
                done, found = rows, []
                for part in compare(NETWORKS[model], rank, modes, options, device):
                    found += part
                    rows = done + [{**row, **_best_ratios(row, found)} for row in found]
                    write(_result(rows, options), options)  # should a later mode fail
    publish(_result(rows, options), options)


def _result(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> Result:
    return Result(
        "step",
        f"One training step of {options.batch} images: median milliseconds, and ratios of images a second.",
        "forward and backward of the frozen network's activations from the stem's output on, training nothing.",
        rows,
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", help=f"networks, of {', '.join(NETWORKS)} (default: resnet50)")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        help=f"of {', '.join(METHODS)} (default: all); floor, to which the others are ratios, comes with them",
    )
    parser.add_argument("--ranks", nargs="+", type=positive, default=[16], metavar="R",
                        help="channels of an update: tr has the nearest square, multi_lora the multiple of 4 below "
                             "(default: 16)")  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: all that the device has; --small: eager")


def check_names(models: Sequence[str], methods: Sequence[str], known_methods: Sequence[str]) -> None:
    """Refuse networks and methods that there are not.

    Raises:
        UserError: the name, and the choices.
    """
    for kind, asked, known in (("model", models, NETWORKS), ("method", methods, known_methods)):
        for name in asked:
            if name not in known:
                raise UserError(f"unknown {kind} {name!r} (choices: {', '.join(known)})")


def compare(
    network: Network, rank: int, modes: Sequence[str], options: argparse.Namespace, device: torch.device
) -> Iterator[list[dict[str, Any]]]:
    """Time all methods, and yield the table's rows of a mode. What is built for a mode serves its graphs as well."""
    for mode in (MODES[0], MODES[2]):
        torch.compiler.reset()
        if not {mode, mode + GRAPH} & set(modes):
            continue
        steps = {name: build(network, name, rank, mode, options.batch, device) for name in options.methods}
        if mode in modes:
            yield _time(network, rank, mode, steps, options, device)
        if mode + GRAPH in modes:
            pool = torch.cuda.graph_pool_handle()
            captured = {name: replace(step, run=_Captured(step.run, pool)) for name, step in steps.items()}
            yield _time(network, rank, mode + GRAPH, captured, options, device)


def _time(
    network: Network,
    rank: int,
    mode: str,
    steps: Mapping[str, Step],
    options: argparse.Namespace,
    device: torch.device,
) -> list[dict[str, Any]]:
    first = {name: _first_step(step.run, device) for name, step in steps.items()}
    memory = {name: None if GRAPH in mode else _peak(step.run, device) for name, step in steps.items()}
    burst = BURST if device.type == "cuda" else 1
    runs = {name: _in_a_row(step.run, burst) for name, step in steps.items()}
    found = timed(runs, options.repeats, options.warmup, device)
    times = {name: Timing(tuple(seconds / burst for seconds in found[name].seconds)) for name in steps}
    told = ", ".join(f"{name} {1000 * times[name].median:.1f}" for name in steps)
    print(f"{network.name}, rank {rank}, {mode}, ms: {told}", file=sys.stderr, flush=True)
    return [
        {
            "model": network.name,
            "rank": rank,
            "mode": mode,
            "method": name,
            "ms": 1000 * times[name].median,
            "images/s": options.batch / times[name].median,
            **_ratios(times, name),
            "spread": times[name].spread,
            "peak GiB": memory[name],
            "channels": step.channels,
            "trained": step.trained,
            "fused": step.fused,
            "first step s": first[name],
        }
        for name, step in steps.items()
    ]


def _ratios(times: Mapping[str, Timing], name: str) -> dict[str, float | None]:
    """Return a method's images a second over those of the baselines."""
    return {
        f"x {baseline}": times[baseline].median / times[name].median if baseline in times else None
        for baseline in BASELINES[1:]
    }


def _best_ratios(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return a row's images a second over those of each baseline in the mode that suits it best."""
    best = {
        name: min((other["ms"] for other in rows if other["method"] == name), default=None) for name in BASELINES[2:]
    }
    return {f"x best {name}": None if ms is None else ms / row["ms"] for name, ms in best.items()}


def build(network: Network, method: str, rank: int, mode: str, batch: int, device: torch.device) -> Step:
    """Make a method's step, with a network of its own.

    Args:
        network: The network.
        method: A name of `METHODS`; ``+checkpointed`` recomputes the activations of blocks, ``+late`` adapts the last
            stage alone.
        rank: Channels of an update.
        mode: ``eager`` or ``compiled``.
        batch: Images.
        device: Where to.
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
        model = adapt(net, format, _rank(format, rank), branches=BRANCHES, exclude_modules=early, input_size=size)
        if "checkpointed" in how:
            checkpoint_blocks(model.network.backbone)
        layer = next(iter(model.layers.values()))
        channels = layer.format.channels(layer.rank)
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


class _Captured:
    """A step as one CUDA graph, captured at the first call, on the current stream: not the default one.

    Args:
        step: Leaves nothing behind that a later step reads, but parameters and the optimizer's state.
        pool: Where graphs that are never replayed at once share their memory.
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


def _in_a_row(run: Callable[[], None], times: int) -> Callable[[], None]:
    def several() -> None:
        for _ in range(times):
            run()

    return several


def _first_step(run: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of the first step, compilation and kernels' builds included."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _peak(run: Callable[[], None], device: torch.device) -> float | None:
    """Return what a step allocates at most beyond what is there before it, in GiB: activations and gradients."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30
