"""Saving and loading adapters."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import metalora
from metalora.adapters.formats import FORMATS
from metalora.errors import UserError
from metalora.models.persist import unwrap

MakeModel = Callable[..., metalora.MetaLoRAModel]
formats = pytest.mark.parametrize("format", sorted(FORMATS))
LABELS = ("cat", "dog", "größe")


def train(model: nn.Module, images: Tensor) -> None:
    inner = unwrap(model)
    optimizer = torch.optim.SGD(inner.trainable().values(), 0.01)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        output = model(images)
        (output.square().sum() + (inner.head(output).sum() if inner.head is not None else 0)).backward()
        optimizer.step()
    model.eval()


@formats
@pytest.mark.parametrize("scope", ["layer", "shared"])
def test_loaded_is_saved(
    format: str, scope: str, lively: MakeModel, net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    model = lively(
        format,
        labels=LABELS,
        modules_to_save=["norm"],
        seed_scope=scope,
        extractor_features="both",
        mapping_depth=3,
        rank_pattern={"tokens": 3},
        alpha_pattern={"mlp.0": 0.5},
        exclude_modules=["mlp.2"],
    )
    train(model, images)
    assert metalora.save(model, tmp_path / "adapter") == tmp_path / "adapter"
    loaded = metalora.load(net, str(tmp_path / "adapter"))

    assert torch.equal(loaded(images), model(images))
    assert torch.equal(loaded.logits(images), model.logits(images))
    assert loaded.spec == model.spec
    assert loaded.spec.labels == LABELS
    norm: Any = loaded.network.backbone.norm
    assert torch.equal(norm.running_var, model.network.backbone.norm.running_var)
    assert not torch.equal(norm.running_var, loaded.network.original.norm.running_var)
    assert norm.num_batches_tracked == 2
    assert not any(module.training for module in loaded.modules())
    assert not torch.equal(loaded(images), net(images))
    with loaded.disable_adapter():
        assert torch.equal(loaded(images), net(images))
    train(loaded, images)


@formats
def test_the_backbone_is_not_in_the_file(format: str, lively: MakeModel, net: nn.Module, tmp_path: Path) -> None:
    model = lively(format)
    folder = metalora.save(model, tmp_path / "adapter")
    saved = load_file(folder / "adapter.safetensors")
    buffers = 0 if model.network.mapping is None else 2 * model.spec.condition_size
    assert sum(tensor.numel() for tensor in saved.values()) == model.count_parameters()[0] + buffers


def test_a_merged_model_is_saved_unmerged(lively: MakeModel, net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    model = lively("lora")
    before = model(images)
    model.merge()
    assert torch.equal(metalora.load(net, metalora.save(model, tmp_path / "adapter"))(images), before)


@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_wrapped_model_is_unwrapped(
    compiled: bool, lively: MakeModel, net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    model = lively("tr", modules_to_save=["norm"])
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(model)
    if compiled:
        wrapped = torch.compile(wrapped, backend="eager")
    else:
        train(wrapped, images)
    folder = metalora.save(wrapped, tmp_path / "adapter")
    assert torch.equal(metalora.load(net, folder)(images), model(images))


def test_what_is_no_model(net: nn.Module, tmp_path: Path) -> None:
    for thing in (net, nn.Sequential(net)):
        with pytest.raises(UserError, match="is no MetaLoRA model"):
            metalora.save(thing, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.fixture
def folder(lively: MakeModel, tmp_path: Path) -> Path:
    return metalora.save(lively("tr", labels=["a", "b"], modules_to_save=["norm"]), tmp_path / "adapter")


def edit_description(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change adapter.json as its reader says one should: without the line sha256."""
    path = folder / "adapter.json"
    description = json.loads(path.read_text())
    del description["sha256"]
    edit(description)
    path.write_text(json.dumps(description))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter.safetensors")
    edit_description(folder, lambda description: None)


@pytest.mark.parametrize("name", ["layers.tokens.up.weight", "mapping.mean", "head.bias", "saved.norm.running_mean"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors, name: tensors.pop(name), "tensor '{}' is missing"),
        (lambda tensors, name: tensors.update({f"{name}2": torch.ones(1)}), "tensor '{}2' is not part"),
        (
            lambda tensors, name: tensors.update({name: torch.ones(1, *tensors[name].shape)}),
            r"tensor '{}' has shape \(1, .*, not \(",
        ),
    ],
)
def test_other_tensors_are_refused(name: str, edit: Any, message: str, folder: Path, net: nn.Module) -> None:
    edit_tensors(folder, lambda tensors: edit(tensors, name))
    with pytest.raises(UserError, match=message.format(name)):
        metalora.load(net, folder)


def changed(net: nn.Module, name: str) -> nn.Module:
    net.get_parameter(name).data[0] += 1e-6
    return net


class Other(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


@pytest.mark.parametrize(
    "change",
    [
        lambda net: changed(net, "stem.bias"),
        lambda net: changed(net, "norm.weight"),
        lambda net: net.norm.running_mean.add_(1) is not None and net,
        lambda net: net.double(),
        Other,
    ],
)
def test_another_backbone_is_refused(change: Callable[[nn.Module], nn.Module], folder: Path, net: nn.Module) -> None:
    other = change(copy.deepcopy(net))
    with pytest.raises(UserError, match=r"was trained with backbone Net \(weights unknown, hash \w{12}\), this is"):
        metalora.load(other, folder)


def test_an_adapted_backbone_is_refused(folder: Path, lively: MakeModel) -> None:
    with pytest.raises(UserError, match="has adapters already"):
        metalora.load(lively("lora").network.backbone, folder)


def extractor(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).eval()


def test_the_extractor_must_be_the_same(
    folder: Path, lively: MakeModel, net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="trained with extractor the backbone itself, this is Sequential"):
        metalora.load(net, folder, extractor(0))
    model = lively("cp", extractor=extractor(0))
    second = metalora.save(model, tmp_path / "second")
    for other in (None, extractor(1)):
        with pytest.raises(UserError, match="trained with extractor Sequential"):
            metalora.load(net, second, other)
    assert torch.equal(metalora.load(net, second, extractor(0))(images), model(images))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(file_version=3), "has file version 3; this metalora reads 1 and 2"),
        (lambda d: d.pop("spec"), "spec = .*: field required"),
        (lambda d: d.pop("backbone"), "backbone = .*: field required"),
        (lambda d: d["spec"].pop("layers"), "spec.layers = .*: field required"),
        (lambda d: d["spec"].update(mapping_depth="deep"), "spec.mapping_depth = 'deep'"),
        (lambda d: d["spec"].update(format="tt"), "unknown adapter format 'tt'"),
        (lambda d: d["spec"]["layers"].update(nowhere={"rank": 2, "alpha": 2}), "no module 'nowhere'"),
        (lambda d: d["spec"]["layers"]["tokens"].update(rank=99), "'tokens': rank 99 does not fit"),
        (lambda d: d["spec"]["layers"]["tokens"].update(rank=3), "has shape"),
        (lambda d: d["spec"]["layers"]["tokens"].update(alpha=1e308), r"'tokens': alpha 1e\+308 is out of range"),
        (lambda d: d["spec"]["layers"]["tokens"].update(alpha=-1), "'tokens': alpha -1"),
        (lambda d: d["spec"].update(layers={}), "layers: there are none"),
        (
            lambda d: d["spec"].update(modules_to_save=["nowhere"]),
            "modules_to_save: the network has no module 'nowhere'",
        ),
        (lambda d: d["spec"].update(modules_to_save=["*"]), r"modules_to_save: the network has no module '\*'"),
        (lambda d: d["spec"].update(modules_to_save=["re:(a|a)*b"]), "modules_to_save: the network has no module 're:"),
        (lambda d: d["spec"].update(modules_to_save=["norm", "norm"]), "modules_to_save: a module is named twice"),
        (lambda d: d["spec"].update(modules_to_save=["tokens"]), "'tokens' is within another module"),
        (lambda d: d["spec"].update(extractor_layers=["x"]), "extractor_layers: the network has no module 'x'"),
        (lambda d: d["spec"].update(mapping_width=10**7), "mapping_width must be 1 to 1048576, got 10000000"),
        (lambda d: d["spec"].update(mapping_width=10**6), "describes 10.* numbers or more, .* holds"),
        (lambda d: d["spec"].update(mapping_depth=10**6), "mapping_depth must be 1 to 256, got 1000000"),
        (
            lambda d: d["spec"].update(format={"name": "multi_lora", "branches": 10**8}),
            "'multi_lora': branches = 100000000: input should be less than or equal to 1048576",
        ),
        (lambda d: d["spec"].update(format={"name": "multi_lora", "branches": 10**6}), "describes .* numbers or more"),
        (lambda d: d["spec"].update(format={"name": "tr", "branches": 2}), "'tr' has no option 'branches'"),
        (lambda d: d["spec"].update(format={"branches": 2}), "spec.format = .*: wanted a name"),
        (lambda d: d["spec"].update(branches=2), "spec.branches = 2: unexpected keyword argument"),
        (lambda d: d["spec"].update(feature_size=10**8), "feature_size must be 1 to 1048576"),
        (lambda d: d["spec"].update(feature_size=0), "feature_size must be 1 to"),
        (lambda d: d["spec"].update(feature_size=10**6), "describes .* numbers or more"),
        (lambda d: d["spec"].update(condition_size=10**6), "describes .* numbers or more"),
        (lambda d: d["spec"].update(condition_size=0), "condition_size must be 1 to"),
        (lambda d: d["spec"].update(labels=["x" * 10**5] * 3), "has shape"),
        (lambda d: d["spec"].update(surprise=1), "spec.surprise = 1: unexpected keyword argument"),
        (lambda d: d.update(surprise=1), "surprise = 1: unexpected keyword argument"),
        (lambda d: d.update(backbone="resnet"), "backbone = 'resnet'"),
        (
            lambda d: d["backbone"].update(hash="0" * 10**6),
            r"with backbone Net \(weights unknown, hash 0{12}\)",
        ),
        (lambda d: d["backbone"].update(name="x" * 10**6, hash=""), "trained with backbone 'xxx"),
    ],
)
def test_another_description_is_refused(edit: Any, message: str, folder: Path, net: nn.Module) -> None:
    edit_description(folder, edit)
    with pytest.raises(UserError, match=message) as error:
        metalora.load(net, folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ['{"file_version": 1, "a": ' + "[" * 10**5, '{"file_version": 1, "file_version": 1}', '{"file_version": NaN}',
     '{"file_version": ' + "1" * 5000 + "}", "\xff", '{"file_version": 1, "spec": "' + "x" * 2**27],
)  # fmt: skip
def test_json_that_is_none_is_refused(text: str, folder: Path, net: nn.Module) -> None:
    (folder / "adapter.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"(adapter\.json cannot be read: |adapter\.json has more than)") as error:
        metalora.load(net, folder)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([float("nan")] * 5), "holds numbers that are not finite"),
        (torch.tensor([float("-inf")] * 5), "holds numbers that are not finite"),
        (torch.ones(5, dtype=torch.int64), "is of type torch.int64, not torch.float32"),
        (torch.ones(5, dtype=torch.bool), "is of type torch.bool, not torch.float32"),
        (torch.ones(5, dtype=torch.complex64), "is of type torch.complex64, not torch.float32"),
    ],
)
def test_other_numbers_are_refused(value: Tensor, message: str, folder: Path, net: nn.Module) -> None:
    name = "saved.norm.running_mean"
    edit_tensors(folder, lambda tensors: tensors.update({name: value[:1].expand(tensors[name].shape).clone()}))
    with pytest.raises(UserError, match=f"{name}' {message}"):
        metalora.load(net, folder)


def test_half_precision_is_read(folder: Path, net: nn.Module, images: Tensor) -> None:
    before = metalora.load(net, folder)(images)
    edit_tensors(folder, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items() if t.ndim}))
    torch.testing.assert_close(metalora.load(net, folder)(images), before, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_changed_bit_is_noticed(name: str, folder: Path, net: nn.Module, images: Tensor) -> None:
    file = folder / name
    whole, before, noticed = file.read_bytes(), metalora.load(net, folder)(images), 0
    generator = random.Random(0)
    for _ in range(60):
        place = generator.randrange(len(whole))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << generator.randrange(8)]) + whole[place + 1 :])
        try:
            met = metalora.load(net, folder)
        except UserError:
            noticed += 1
        else:
            assert torch.equal(met(images), before)  # a space of the JSON is another one
    assert noticed > 50


def test_adapters_of_older_code_have_no_checksum(folder: Path, net: nn.Module, images: Tensor) -> None:
    before = metalora.load(net, folder)(images)
    edit_description(folder, lambda description: None)
    assert torch.equal(metalora.load(net, folder)(images), before)


def test_refusals_leave_the_backbone_alone(folder: Path, net: nn.Module, images: Tensor) -> None:
    before = net(images)
    edit_tensors(folder, lambda tensors: tensors.pop("head.bias"))
    with pytest.raises(UserError, match=r"head\.bias"):
        metalora.load(net, folder)
    assert torch.equal(net(images), before)


def test_interrupted_save_keeps_the_old(
    folder: Path, fresh: MakeModel, net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = metalora.load(net, folder)(images)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("json.dumps", stop)
    with pytest.raises(OSError, match="disk full"):
        metalora.save(fresh("cp"), folder)
    monkeypatch.undo()
    assert torch.equal(metalora.load(net, folder)(images), before)
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
