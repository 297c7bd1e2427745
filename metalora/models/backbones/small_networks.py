"""This project's own small networks."""

from collections.abc import Callable, Sequence

from torch import nn

from metalora.errors import UserError
from metalora.models.backbones.base import LIBRARIES, Kept, Parts, shapes_of
from metalora.models.backbones.resnet_cifar import ResNetCifar
from metalora.models.inputs import ImageInputs
from metalora.places import WEIGHT_FILES


def _mixer_tiny() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    net: nn.Module = MlpMixer(img_size=28, patch_size=7, num_blocks=4, embed_dim=128, num_classes=0)
    return net


# This project's own networks for small images: how to make one, and the sides it takes (None: any).
EMBEDDED: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
    "resnet20": (ResNetCifar, None),
    "mixer_tiny": (_mixer_tiny, 28),
}


@LIBRARIES.register("")
class SmallNetworks:
    """ResNet-20 and a small MLP-Mixer, whose weights this project trains itself."""

    def names(self) -> Sequence[str]:
        """Return the names of the small networks. See `Library.names`."""
        return list(EMBEDDED)

    def build(self, model: str, weights: str, image_size: int | None, fetch: bool) -> Parts:
        """Build a small network. See `Library.build`."""
        from torchvision import transforms

        if weights != "none" and fetch:
            raise UserError(
                f"backbone {model!r} has no published weights {weights!r}: "
                f"accepted are 'none' and the path of a state dict ({', '.join(WEIGHT_FILES)})"
            )
        make, only_side = EMBEDDED[model]
        side = image_size or 28
        if only_side not in (None, side):
            raise UserError(f"backbone {model!r} takes images of {only_side}x{only_side} only, image_size is {side}")
        net = make()
        crop = transforms.Compose([transforms.Resize((side, side)), transforms.PILToTensor()])
        return Parts(net, shapes_of(net), ImageInputs(crop, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (3, side, side)))

    def kept(self, model: str, weights: str) -> Kept | None:
        """Return None: nothing is published. See `Library.kept`."""
        return None
