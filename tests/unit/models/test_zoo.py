"""Adapters on the libraries' architectures, with random weights: forward, backward, and one seed an image."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metalora
from metalora.models.backbones.base import Backbone
from metalora.models.backbones.build import build_backbone

pytestmark = pytest.mark.slow

# Name, image size, and settings where the default rank of 2 fits not everywhere.
ZOO: list[tuple[str, int, dict[str, Any]]] = [
    ("resnet20", 28, {}),
    ("torchvision/convnext_tiny", 32, {}),
    ("torchvision/densenet121", 32, {}),
    ("torchvision/efficientnet_b0", 32, {}),
    ("torchvision/googlenet", 64, {}),
    ("torchvision/mobilenet_v3_small", 32, {}),
    ("torchvision/regnet_y_400mf", 32, {}),
    ("torchvision/resnet18", 32, {}),
    ("torchvision/resnext50_32x4d", 32, {}),
    ("torchvision/shufflenet_v2_x0_5", 64, {}),
    ("torchvision/swin_t", 64, {}),
    ("torchvision/swin_v2_t", 64, {}),
    ("torchvision/vit_b_32", 64, {}),
    ("timm/beit_base_patch16_224", 32, {}),
    ("timm/cait_xxs24_224", 32, {}),
    ("timm/coat_tiny", 32, {"exclude_modules": ["aggregate"]}),
    ("timm/crossvit_tiny_240", 120, {}),
    ("timm/deit_tiny_distilled_patch16_224", 32, {}),
    ("timm/edgenext_xx_small", 64, {}),
    ("timm/efficientvit_m0", 64, {}),
    ("timm/focalnet_tiny_srf", 32, {}),
    ("timm/gmlp_ti16_224", 32, {}),
    ("timm/hiera_tiny_224", 64, {}),
    ("timm/levit_128s", 64, {}),
    ("timm/mixer_s32_224", 64, {}),
    ("timm/mobilevit_xxs", 64, {}),
    ("timm/pit_ti_224", 32, {}),
    ("timm/poolformer_s12", 32, {}),
    ("timm/pvt_v2_b0", 32, {}),
    ("timm/regnetx_002", 32, {}),
    ("timm/repvit_m0_9", 32, {}),
    ("timm/resmlp_12_224", 32, {}),
    ("timm/swinv2_cr_tiny_224", 56, {}),
    ("timm/test_coatnet", 64, {}),
    ("timm/test_efficientnet", 64, {}),
    ("timm/test_maxvit", 64, {}),
    ("timm/test_vit_relpos", 32, {}),
    ("timm/tf_efficientnet_lite0", 32, {}),
    ("timm/tnt_s_patch16_224", 32, {}),
    ("timm/twins_svt_small", 64, {}),
    ("timm/vgg11_bn", 32, {}),
    ("timm/visformer_tiny", 32, {}),
    ("timm/xcit_nano_12_p16_224", 32, {}),
]
FORMATS = itertools.cycle(["tr", "cp"])


def lively(name: str, size: int) -> Backbone:
    """Build a network whose branches all count: initial values hide some behind zeros and tiny scales."""
    backbone = build_backbone(name, "none", size)
    with torch.no_grad():
        for part, parameter in backbone.named_parameters():
            if parameter.dim() <= 1 or "gamma" in part:
                parameter.uniform_(0.75, 1.25) if "bias" not in part else parameter.normal_(0, 0.1)
        norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        backbone(torch.randn(8, *backbone.input_size))
    return backbone.eval()


@pytest.mark.filterwarnings("ignore::UserWarning:timm", "ignore::DeprecationWarning:timm")
@pytest.mark.parametrize(
    ("name", "size", "settings", "format"),
    [pytest.param(*entry, format, id=entry[0]) for entry, format in zip(ZOO, FORMATS, strict=False)],
)
def test_every_image_has_its_seed(name: str, size: int, settings: dict[str, Any], format: str) -> None:
    torch.manual_seed(0)
    backbone = lively(name, size).double()
    images = torch.randn(3, *backbone.input_size, dtype=torch.float64)
    model = metalora.adapt(backbone, format, 2, mapping_width=8, **settings).double()
    backbone.requires_grad_(False)  # torch picks other kernels, which round otherwise, for what wants gradients
    with torch.no_grad():
        frozen = backbone(images)
        assert torch.equal(model.eval()(images), frozen)

    condition = torch.randn(3, model.spec.condition_size, dtype=torch.float64)
    with torch.no_grad():
        for layer in model.layers.values():
            layer.factors.up.weight.normal_(0, 0.3 / layer.factors.up.weight[0].numel() ** 0.5)
        assert model.network.mapping is not None
        model.network.mapping.heads.weight.normal_()
    model.train()
    together = model(images, condition)
    assert relative(together, frozen) > 1e-4

    alone = torch.cat([model(images[i : i + 1], condition[i : i + 1]) for i in range(3)])
    assert relative(alone, together) < 1e-8
    assert relative(model(images, condition.roll(1, 0)), together) > 1e-5

    together.square().mean().backward()
    without = [part for part, p in model.trainable().items() if p.grad is None or not p.grad.any()]
    assert without == []


def relative(met: Tensor, wanted: Tensor) -> float:
    return float((met - wanted).detach().abs().max() / wanted.detach().abs().max())
