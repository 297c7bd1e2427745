"""A whole model: backbone, adapters, mapping net, extractor, head."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import metalora
from metalora.adapters.formats import FORMATS
from metalora.adapters.layer import AdaptedLayer
from metalora.errors import UserError

MakeModel = Callable[..., metalora.MetaLoRAModel]
formats = pytest.mark.parametrize("format", sorted(FORMATS))
seeded = pytest.mark.parametrize("format", ["cp", "tr"])


def train(model: metalora.MetaLoRAModel, images: Tensor, steps: int = 1, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(model.trainable().values(), lr)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
    model.eval()


def fixed_seed(model: metalora.MetaLoRAModel, images: Tensor) -> Tensor | None:
    return model.seed(images).mean(0).detach() if model.network.mapping is not None else None


@formats
def test_fresh_model_is_its_backbone(format: str, fresh: MakeModel, net: nn.Module, images: Tensor) -> None:
    model = fresh(format)
    assert torch.equal(model(images), net(images))
    assert not torch.equal(model(images), model(images.flip(0)))


@formats
def test_first_step_lowers_the_loss(format: str, fresh: MakeModel, images: Tensor) -> None:
    model = fresh(format)
    before = model(images).square().sum()
    train(model, images, lr=1e-3)
    assert model(images).square().sum() < before


def test_first_step_of_cp_is_that_of_lora(fresh: MakeModel, images: Tensor) -> None:
    cp, lora = fresh("cp"), fresh("lora")
    for name, layer in lora.layers.items():
        layer.factors.down.weight.data.copy_(cp.layers[name].factors.down.weight)
    for model in (cp, lora):
        train(model, images)
    for name, layer in lora.layers.items():
        assert layer.factors.up.weight.abs().sum() > 0
        assert torch.equal(layer.factors.down.weight, cp.layers[name].factors.down.weight)
        assert torch.equal(layer.factors.up.weight, cp.layers[name].factors.up.weight)
    assert torch.equal(cp(images), lora(images))


@seeded
@pytest.mark.parametrize("scope", ["layer", "shared"])
def test_each_image_has_its_own_seed(format: str, scope: str, lively: MakeModel, images: Tensor) -> None:
    model = lively(format, seed_scope=scope)
    together = model(images)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), together)
    features = model.extractor(images)
    assert torch.equal(model(images, features), together)
    assert not torch.allclose(model(images, features.flip(0)), together, atol=1e-3)


@formats
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_merged_is_unmerged(
    format: str, dtype: torch.dtype, tolerance: float, lively: MakeModel, net: nn.Module, images: Tensor
) -> None:
    model = lively(format, backbone=copy.deepcopy(net).to(dtype))
    image = images[:1].to(dtype)
    before, bits = model(image), copy.deepcopy(model.state_dict())
    features = model.extractor(image) if model.extractor else None
    seed = fixed_seed(model, image)
    model.merge(seed)
    torch.testing.assert_close(model(image), before, rtol=tolerance, atol=tolerance)
    assert not torch.allclose(net.to(dtype)(image), before, atol=1e-3)
    if model.extractor is not None:
        assert torch.equal(model.extractor(image), features)
    with pytest.raises(UserError, match="merged already"):
        model.merge(seed)
    with pytest.raises(UserError, match="unmerge it before"), model.disable_adapter():
        pass
    torch.testing.assert_close(model(image), before, rtol=tolerance, atol=tolerance)
    model.unmerge()
    assert torch.equal(model(image), before)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in bits.items())
    with pytest.raises(UserError, match="not merged"):
        model.unmerge()


@seeded
def test_merging_takes_one_whole_seed(format: str, lively: MakeModel, images: Tensor) -> None:
    model = lively(format)
    seeds = model.seed(images).detach()
    for wrong in (None, seeds, seeds[0, :-1]):
        with pytest.raises(UserError, match=rf"needs one seed of {seeds.shape[1]} elements"):
            model.merge(wrong)
    model.merge(seeds[:1])


@formats
def test_merge_and_unload_gives_a_plain_network(format: str, lively: MakeModel, net: nn.Module, images: Tensor) -> None:
    model = lively(format, modules_to_save=["norm"])
    nn.init.normal_(model.network.backbone.norm.weight)
    before = model(images[:1])
    plain = model.merge_and_unload(fixed_seed(model, images[:1]))
    assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
    assert plain.state_dict().keys() == net.state_dict().keys()
    torch.testing.assert_close(plain(images[:1]), before)


def test_one_adapter_per_backbone(lively: MakeModel) -> None:
    with pytest.raises(UserError, match="has adapters already"):
        metalora.adapt(lively("lora").network.backbone, "lora", 2, input_size=(3, 16, 16))


@formats
def test_what_requires_gradients_is_what_is_declared(format: str, fresh: MakeModel) -> None:
    model = fresh(format, modules_to_save=["norm"], labels=["a", "b"])
    wanted = {id(parameter) for parameter in model.trainable().values()}
    assert wanted == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    parts = {"layers", "saved", "head"} | ({"mapping"} if format in ("cp", "tr") else set())
    assert {name.split(".")[0] for name in model.trainable()} == parts
    assert model.count_parameters()[0] == sum(parameter.numel() for parameter in model.trainable().values())


@formats
def test_training_changes_nothing_else(format: str, lively: MakeModel, images: Tensor) -> None:
    model = lively(format, modules_to_save=["norm"])
    before = copy.deepcopy(model.state_dict())
    trained = model.trainable()
    names = {name for name, p in model.named_parameters() if any(p is t for t in trained.values())}
    buffers = {name for name in before if "backbone.norm." in name and name not in names}
    assert len(buffers) == 3
    train(model, images, steps=3, lr=0.01)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == names | buffers


@pytest.mark.parametrize("start", ["model", "network", "ancestor"])
def test_what_is_frozen_stays_in_eval_mode(start: str, fresh: MakeModel) -> None:
    model = fresh("tr", modules_to_save=["norm"])
    {"model": model, "network": model.network, "ancestor": nn.Sequential(model)}[start].train()
    network: Any = model.network
    assert network.training
    assert network.backbone.norm.training
    assert not any(module.training for module in network.original.modules())
    assert {m for m in network.backbone.modules() if m.training} == {network.backbone.norm}
    assert not any(m.training for m in model.extractor.modules())
    model.eval()
    assert not any(m.training for m in model.modules())


@formats
def test_disabled_adapter_is_the_backbone(format: str, lively: MakeModel, net: nn.Module, images: Tensor) -> None:
    model = lively(format, modules_to_save=["norm"])
    train(model, images, lr=0.01)
    on = model(images)
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(model(images), net(images))
        assert torch.equal(model(images), net(images))
    assert torch.equal(model(images), on)
    with pytest.raises(KeyError), model.disable_adapter():
        raise KeyError
    assert torch.equal(model(images), on)
    assert not torch.allclose(on, net(images))


@formats
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_apart(format: str, copier: Any, lively: MakeModel, images: Tensor) -> None:
    model = lively(format, modules_to_save=["norm"], labels=["a", "b"])
    model(images).sum().backward()
    twin = copier(model)
    assert twin.network.slot is not model.network.slot
    assert twin.network.slot.seeds is None
    assert all(layer.slot is twin.network.slot for layer in twin.layers.values())
    assert list(twin.layers.values()) == [m for m in twin.modules() if isinstance(m, AdaptedLayer)]
    assert torch.equal(twin.logits(images), model.logits(images))
    before = model(images)
    train(twin, images)
    with twin.disable_adapter():
        assert torch.equal(model(images), before)
    assert not torch.equal(twin(images), before)


@formats
def test_the_users_backbone_is_untouched(format: str, net: nn.Module, fresh: MakeModel, images: Tensor) -> None:
    net.train().requires_grad_(True)
    net.stem.weight.requires_grad_(False)
    flags = {name: (m.training, type(m)) for name, m in net.named_modules()}
    wants = {name: p.requires_grad for name, p in net.named_parameters()}
    state, storage = copy.deepcopy(net.state_dict()), {p.data_ptr() for p in net.state_dict().values()}
    model = fresh(format, modules_to_save=["norm"], labels=["a", "b"])
    train(model, images)
    assert {name: (m.training, type(m)) for name, m in net.named_modules()} == flags
    assert {name: p.requires_grad for name, p in net.named_parameters()} == wants
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert not storage & {p.data_ptr() for p in model.state_dict().values()}


def test_extractor_costs_no_memory(fresh: MakeModel, net: nn.Module) -> None:
    model = fresh("tr")
    base = sum(parameter.numel() for parameter in net.parameters())
    assert model.count_parameters()[1] == base + model.count_parameters()[0]


@seeded
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_backbone_of_another_type(
    format: str, dtype: torch.dtype, lively: MakeModel, net: nn.Module, images: Tensor
) -> None:
    model = lively(format, backbone=net.to(dtype), labels=["a", "b"])
    assert model(images.to(dtype)).dtype == dtype
    model.logits(images.to(dtype)).sum().backward()


def test_nested_modules_to_save(fresh: MakeModel, images: Tensor) -> None:
    model = fresh("cp", target_modules="mlp.?", modules_to_save=["blocks.*", "norm"])
    assert model.spec.modules_to_save == ("blocks.0", "blocks.1", "norm")
    assert "saved.blocks.1.conv1.weight" in model.trainable()
    train(model, images)


def test_layers_inside_modules_to_save_are_not_adapted(fresh: MakeModel) -> None:
    model = fresh("cp", target_modules="auto", modules_to_save=["blocks.0", "mlp.0"])
    assert list(model.layers) == ["blocks.1.conv1", "tokens"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "tt"}, r"unknown adapter format 'tt'.*cp, lora, multi_lora, tr"),
        ({"seed_scope": "layers"}, r"mapping.seed_scope = 'layers': input should be 'layer' or 'shared'"),
        (
            {"extractor_features": "stat"},
            "mapping.extractor_features = 'stat': input should be 'pooled', 'stats'",
        ),
        ({"mapping_depth": 0}, "mapping.mapping_depth = 0: input should be greater than or equal to 1"),
        ({"mapping_depth": 257}, "mapping_depth must be 1 to 256, got 257"),
        ({"mapping_width": 0}, "mapping.mapping_width = 0: input should be greater than or equal to 1"),
        ({"format": {"name": "multi_lora", "branches": 0}}, "'multi_lora': branches = 0: input should be greater"),
        ({"format": {"name": "multi_lora", "branch": 2}}, "'multi_lora' has no option 'branch', did you mean 'branc"),
        ({"format": {"branches": 2}}, "adapter.format = .*: wanted a name, or {name: NAME, OPTION: VALUE}"),
        ({"rank": 0}, "adapter.rank = 0: input should be greater than or equal to 1"),
        ({"branches": 2}, "setting 'branches' is now an option of a method: format="),
        ({"rnak": 2}, r"unknown setting adapter.rnak, did you mean 'rank'"),
        ({"lr": 0.1}, "unknown setting adapter.lr, it belongs in section 'train'"),
        ({"input_size": (4, 16, 16)}, r"Net fails with images of shape \(4, 16, 16\)"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str, fresh: MakeModel) -> None:
    with pytest.raises(UserError, match=message):
        fresh(**settings)


def test_what_a_format_has_not(fresh: MakeModel, images: Tensor) -> None:
    with pytest.raises(UserError, match="'lora' generates no seeds"):
        fresh("lora").seed(images)
    with pytest.raises(UserError, match="no classifier head"):
        fresh("lora").logits(images)


def test_printed_counts(fresh: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model = fresh("lora", target_modules="mlp.0")
    model.print_trainable_parameters()
    trained, total = 2 * (8 + 12), sum(p.numel() for p in model.parameters())
    assert capsys.readouterr().out == (
        f"trainable params: {trained} || all params: {total:,} || trainable%: {100 * trained / total:.4f}\n"
    )


@formats
def test_bfloat16_autocast_is_near_float32(format: str, lively: MakeModel, images: Tensor) -> None:
    model = lively(format)
    wanted = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        met = model(images)
    met.float().square().sum().backward()
    assert met.dtype == torch.bfloat16
    assert (met.float() - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert all(parameter.grad.isfinite().all() for parameter in model.trainable().values())


@formats
def test_memory_format_changes_nothing(format: str, lively: MakeModel, images: Tensor) -> None:
    model = lively(format)
    wanted = model(images)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), wanted)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), wanted)


@pytest.mark.slow
@formats
def test_compiled_network_is_one_graph(format: str, lively: MakeModel, images: Tensor) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model = lively(format)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.network, fullgraph=True, backend=counter)
    for step in range(3):
        batch = images + step
        condition = model.extractor(batch) if model.extractor is not None else None
        model.zero_grad()
        wanted = model.network(batch, condition)
        wanted.square().sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.trainable().items()}
        model.zero_grad()
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            met = compiled(batch, condition)
        met.square().sum().backward()
        torch.testing.assert_close(met, wanted)
        for name, parameter in model.trainable().items():
            torch.testing.assert_close(parameter.grad, gradients[name])
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("format", ["lora", "tr"])
def test_frozen_layers_before_the_first_adapter_keep_no_graph(format: str) -> None:
    model = metalora.adapt(resnet18(), format, 2, target_modules=["layer4.1.*conv2"], input_size=(3, 32, 32)).train()
    kept: dict[str, bool] = {}
    for name in ("layer1", "layer3", "layer4.1.conv1", "layer4.1"):
        model.network.backbone.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: kept.update({name: output.requires_grad})
        )
    model(torch.randn(2, 3, 32, 32))
    assert kept == {"layer1": False, "layer3": False, "layer4.1.conv1": False, "layer4.1": True}
