"""Format ``lora`` against PEFT's LoRA with the same factors."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import metalora


class Net(nn.Module):
    """Every kind of layer that both can adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 6, (3, 1), stride=2, padding=1, bias=False)  # PEFT forgets a dilation
        self.same = nn.Conv2d(6, 6, 3, padding="same")
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.same(self.conv(self.stem(x)).relu()).relu()
        return self.linear(h.mean((2, 3)))


TARGETS = ["conv", "same", "linear"]


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (3, 8)])
def test_output_gradients_and_count_are_pefts(rank: int, alpha: int) -> None:
    torch.manual_seed(0)
    net = Net()
    ours = metalora.adapt(net, "lora", rank, alpha, target_modules=TARGETS, input_size=(3, 12, 12))
    theirs = get_peft_model(net, LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights=False))
    pairs = []
    for name, layer in ours.layers.items():
        twin = theirs.base_model.model.get_submodule(name)
        down, up = layer.factors.pair()
        pairs += [(down, twin.lora_A.default.weight), (up, twin.lora_B.default.weight)]
    with torch.no_grad():
        for own, other in pairs:
            assert own.shape == other.shape
            own.copy_(other)
    x = torch.randn(4, 3, 12, 12)
    target = torch.randn(4, 5)
    for model in (ours, theirs):
        (model(x) - target).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    for own, other in pairs:
        assert own.grad.abs().sum() > 0
        torch.testing.assert_close(own.grad, other.grad)
    assert ours.count_parameters()[0] == theirs.get_nb_trainable_parameters()[0]
    merged, unloaded = ours.merge_and_unload(), theirs.merge_and_unload()
    for name in TARGETS:
        torch.testing.assert_close(merged.get_submodule(name).weight, unloaded.get_submodule(name).weight)
