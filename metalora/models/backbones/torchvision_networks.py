"""Torchvision's classification networks."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from metalora.errors import UserError
from metalora.models.backbones.base import LIBRARIES, Kept, Parts, kept_by_torch, shapes_of
from metalora.models.inputs import ImageInputs
from metalora.places import WEIGHT_FILES
from metalora.registry import nearest


@LIBRARIES.register("torchvision")
class Torchvision:
    """Torchvision's classification networks."""

    def names(self) -> Sequence[str]:
        """Return the names of torchvision's networks. See `Library.names`."""
        from torchvision import models

        names: list[str] = models.list_models(module=models)
        return names

    def build(self, model: str, weights: str, image_size: int | None, fetch: bool) -> Parts:
        """Build a network of torchvision. See `Library.build`."""
        from torchvision import models, transforms

        classifiers = models.list_models(module=models)
        if model not in classifiers:
            if model in models.list_models():
                raise UserError(f"backbone 'torchvision/{model}' is not a classification network")
            raise UserError(f"unknown torchvision network {model!r}{nearest(model, classifiers)}")
        if model.startswith("squeezenet"):
            raise UserError(f"backbone 'torchvision/{model}' has no feature vector: its classifier is convolutional")
        chosen = _published(model, weights)
        transform = chosen.transforms()
        (own_side,), (own_resize,) = transform.crop_size, transform.resize_size
        side = image_size or own_side
        resize = transforms.Resize(
            [round(own_resize * side / own_side)], transform.interpolation, antialias=transform.antialias
        )
        crop = transforms.Compose([resize, transforms.CenterCrop([side]), transforms.PILToTensor()])
        fetched = chosen if fetch and weights != "none" else None
        net = models.get_model(model, weights=fetched, **_arguments(model, side))
        shapes = shapes_of(net)
        _cut(net)
        inputs = ImageInputs(crop, tuple(transform.mean), tuple(transform.std), (3, side, side))
        return Parts(net, shapes, inputs)

    def kept(self, model: str, weights: str) -> Kept | None:
        """Return torch's folder of downloads. See `Library.kept`."""
        return kept_by_torch(str(_published(model, weights).url))


def _published(model: str, weights: str) -> Any:
    """Return the entry of published weights; for ``none`` too, since it has the preprocessing.

    Raises:
        UserError: the network has no weights of that name.
    """
    from torchvision import models

    known = models.get_model_weights(model).__members__
    chosen = "DEFAULT" if weights in ("default", "none") else weights
    if chosen not in known:
        raise UserError(
            f"backbone 'torchvision/{model}' has no weights {weights!r}{nearest(weights, known)} "
            f"(accepted: default, none, {', '.join(known)}, or a path ending in {', '.join(WEIGHT_FILES)})"
        )
    return known[chosen]


def _arguments(model: str, side: int) -> dict[str, Any]:
    if model.startswith("vit_"):
        return {"image_size": side}
    if model == "maxvit_t":
        return {"input_size": (side, side)}
    if model in ("inception_v3", "googlenet"):
        return {"init_weights": False}  # the other initialisation is slow, and announced as going away
    return {}


def _cut(net: nn.Module) -> None:
    """Replace the classifier, the last linear layer, by the identity; drop auxiliary classifiers."""
    for auxiliary in ("AuxLogits", "aux1", "aux2"):
        if hasattr(net, auxiliary):
            setattr(net, auxiliary, None)
            net.aux_logits = False  # type: ignore[assignment]
    if hasattr(net, "transform_input"):
        # The published weights want it; without weights torchvision leaves it off, also for a local file.
        net.transform_input = True  # type: ignore[assignment]
    last = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
    net.set_submodule(last, nn.Identity())
