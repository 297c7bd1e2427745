"""Layers that are run again in a backward pass read the seeds of their own forward pass."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import metalora
from metalora.adapters.formats import FORMATS
from metalora.errors import UserError
from metalora.train.activation_checkpointing import checkpoint_blocks

MakeModel = Callable[..., metalora.MetaLoRAModel]
formats = pytest.mark.parametrize("format", sorted(FORMATS))


class Checkpointed(nn.Sequential):
    """Blocks that the network itself checkpoints."""

    reentrant = False
    recomputes = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = checkpoint(block, x, use_reentrant=self.reentrant) if self.recomputes else block(x)
        return x


@pytest.fixture
def checkpointed(lively: MakeModel, net: Any) -> MakeModel:
    """Adapt a network whose blocks can be checkpointed: by itself, or by `checkpoint_blocks`."""
    net.blocks = Checkpointed(*net.blocks)
    return lively


def recompute(model: metalora.MetaLoRAModel, by: str) -> None:
    """From now on, run blocks again in the backward pass."""
    blocks: Any = model.network.backbone.blocks
    if by == "ours":
        checkpoint_blocks(model.network.backbone)
        assert sum("CheckpointWrapper" in type(m).__name__ for m in model.modules()) == 2
    else:
        blocks.recomputes, blocks.reentrant = True, by == "reentrant"


def here(run: Callable[[], Any]) -> None:
    run()


def elsewhere(run: Callable[[], Any]) -> None:
    """Run in another thread, as autograd does for what was computed on a GPU."""
    errors: list[BaseException] = []

    def collected() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=collected)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def joint(model: metalora.MetaLoRAModel, images: Tensor, where: Any) -> None:
    loss = model(images).square().sum() + model(images.flip(0)).sin().sum()
    where(loss.backward)


def in_turn(model: metalora.MetaLoRAModel, images: Tensor, where: Any) -> None:
    first, second = model(images).square().sum(), model(images[:3].flip(0)).sin().sum()
    where(first.backward)
    where(second.backward)


def last_first(model: metalora.MetaLoRAModel, images: Tensor, where: Any) -> None:
    first, second = model(images).square().sum(), model(images[:3].flip(0)).sin().sum()
    with torch.no_grad(), model.disable_adapter():
        model(images)
    where(second.backward)
    where(first.backward)


def twice(model: metalora.MetaLoRAModel, images: Tensor, where: Any) -> None:
    first = model(images).square().sum()
    where(lambda: first.backward(retain_graph=True))
    model(images.flip(0))
    where(first.backward)


def whole(model: metalora.MetaLoRAModel, images: Tensor, where: Any) -> None:
    """The model is itself a part of what is checkpointed."""
    first, second = (checkpoint(model, x, use_reentrant=False) for x in (images, images.flip(0)))
    where((first.square().sum() + second.sin().sum()).backward)


def gradients(model: metalora.MetaLoRAModel, run: Callable[[], None]) -> dict[str, Tensor]:
    model.zero_grad()
    run()
    return {name: parameter.grad.clone() for name, parameter in model.trainable().items()}


def assert_equal(met: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, gradient in wanted.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(met[name], gradient, msg=name)


@formats
@pytest.mark.parametrize("by", ["ours", "the network"])
@pytest.mark.parametrize("where", [here, elsewhere])
@pytest.mark.parametrize("backward", [joint, in_turn, last_first, twice, whole])
def test_gradients_are_those_without(
    format: str, by: str, where: Any, backward: Any, checkpointed: MakeModel, images: Tensor
) -> None:
    model = checkpointed(format).train()
    wanted = gradients(model, lambda: backward(model, images, here))
    recompute(model, by)
    assert_equal(gradients(model, lambda: backward(model, images, where)), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["ours", "the network"])
@pytest.mark.parametrize("format", ["lora", "tr"])
def test_compiled_in_one_graph(format: str, by: str, checkpointed: MakeModel, images: Tensor) -> None:
    torch._dynamo.reset()
    model = checkpointed(format).train()
    condition = model.extractor(images) if model.extractor is not None else None

    def backward(network: nn.Module) -> None:
        (network(images, condition).square().sum() + network(images.flip(0), condition).sin().sum()).backward()

    wanted = gradients(model, lambda: backward(model.network))
    recompute(model, by)
    compiled = torch.compile(model.network, fullgraph=True, backend="aot_eager")
    assert_equal(gradients(model, lambda: backward(compiled)), wanted)
    with torch._dynamo.config.patch(error_on_recompile=True):
        elsewhere(lambda: assert_equal(gradients(model, lambda: backward(compiled)), wanted))
    torch._dynamo.reset()


@pytest.mark.parametrize("format", ["lora", "cp"])
def test_adapters_that_are_off_stay_off(format: str, checkpointed: MakeModel, images: Tensor) -> None:
    """The images' gradient through the backbone alone, which is taken when the adapters are on again."""
    model = checkpointed(format, modules_to_save=["blocks.0"]).train()

    def gradient() -> Tensor:
        with model.disable_adapter():
            loss = model(images.requires_grad_()).square().sum()
        return torch.autograd.grad(loss, images)[0]

    wanted = gradient()
    recompute(model, "the network")
    assert torch.equal(gradient(), wanted)


@pytest.mark.parametrize("by", ["ours", "the network"])
def test_calls_of_several_threads_in_one_backward_pass(by: str, checkpointed: MakeModel, images: Tensor) -> None:
    model = checkpointed("tr").train()

    def backward() -> None:
        outputs: list[Tensor] = []
        for x in (images, images.flip(0)):
            elsewhere(lambda x=x: outputs.append(model(x)))
        (outputs[0].square().sum() + outputs[1].sin().sum()).backward()

    wanted = gradients(model, backward)
    recompute(model, by)
    if by == "ours":
        assert_equal(gradients(model, backward), wanted)
    else:
        with pytest.raises(RuntimeError, match=r"no seed to run a layer again with .* of one thread's calls"):
            backward()


@pytest.mark.parametrize("by", ["ours", "the network"])
@pytest.mark.parametrize("others", [False, True])
def test_a_loss_of_what_lies_within(others: bool, by: str, checkpointed: MakeModel, images: Tensor) -> None:
    """The backward pass does not come to the model's output, or only to that of a later call."""
    model = checkpointed("tr").train()

    def backward() -> None:
        within: list[Tensor] = []
        hook = model.network.backbone.blocks.register_forward_hook(lambda module, x, y: within.append(y))
        model(images)
        hook.remove()
        later = model(images.flip(0)).square().sum() if others else 0
        (within[0].square().sum() + later).backward()

    model.zero_grad()
    backward()
    wanted = {name: p.grad for name, p in model.trainable().items() if name.startswith("layers.blocks")}
    recompute(model, by)
    model.zero_grad()
    if by == "ours":
        backward()
        assert_equal({name: p.grad for name, p in model.trainable().items()}, wanted)
    else:
        with pytest.raises(RuntimeError, match=r"no seed to run a layer again with .* depend on the model's outputs"):
            backward()


@formats
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_would_learn_nothing_is_refused(
    wanted: bool, format: str, checkpointed: MakeModel, images: Tensor
) -> None:
    model = checkpointed(format).train()
    recompute(model, "reentrant")
    with pytest.raises(UserError, match=r"adapted Conv2d\(8, 8.* without gradients.* use_reentrant=False"):
        model(images.requires_grad_(wanted))
    with torch.no_grad():
        model(images)
    model.eval()(images)
