"""Backbones by name: this project's small ResNet-20 and MLP-Mixer, torchvision's and timm's classification networks.

A backbone is a network without its classifier, together with the preprocessing its weights expect.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalora.errors import UserError, one_line
from metalora.limits import limits
from metalora.models.preprocessing import Preprocessing
from metalora.models.resnet_cifar import ResNetCifar
from metalora.places import WEIGHT_FILES, absolute, is_weight_file
from metalora.reading import gate, short
from metalora.registry import nearest
from metalora.tensor_files import check_like, read_safetensors, read_torch

_log = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A network without its classifier.

    Args:
        name: ``resnet20``, ``mixer_tiny``, ``torchvision/NAME`` or ``timm/NAME``.
        weights: What was asked for: ``default``, a weights name, ``none`` or a path.
        net: The network; (B, 3, H, W) -> (B, num_features).
        num_features: Length of a feature vector.
        input_size: (3, H, W) of what `preprocess` returns.
        stem: Full dotted name (``net.conv1``) of the first convolution or linear layer, which is not to
            be adapted; None where there is none.
        preprocess: What its weights expect of images; picklable.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        net: nn.Module,
        num_features: int,
        input_size: tuple[int, int, int],
        stem: str | None,
        preprocess: Preprocessing,
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.net = net
        self.num_features = num_features
        self.input_size = input_size
        self.stem = stem
        self.exempt_modules = () if stem is None else (stem,)  # what ``target_modules = auto`` leaves alone
        self.preprocess = preprocess

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled features, as the classifier would see them.

        Args:
            x: Preprocessed images, (B, 3, H, W).

        Returns:
            Features, (B, num_features).
        """
        features: Tensor = self.net(x)
        return features

    forward = features


def build_backbone(
    name: str, weights: str = "default", image_size: int | None = None, *, file: str | Path | None = None
) -> Backbone:
    """Build a backbone, in eval mode.

    A file's classifier tensors are ignored, since the network has none. Every other tensor must be
    there, in name and shape. One exception: a file in which *no* name is the network's, but whose
    tensors have, in order, exactly the network's shapes, is loaded by order, and a warning is logged.

    Args:
        name: ``resnet20``, ``mixer_tiny``, ``torchvision/NAME`` or ``timm/NAME`` (timm's tags included:
            ``timm/resnet50.a1_in1k``). Classification networks only.
        weights: ``default`` (the library's pretrained weights; this project's own networks have none: pass a path), a
            weights name of the library (``IMAGENET1K_V2``, or a timm tag ``a1_in1k``), ``none``
            (random), or the path of a state dict (.safetensors, .pt, .pth).
        image_size: Side of the square input; None for the weights' own.
        file: A state dict to load in place of the library's own tensors: the preprocessing is that of
            ``weights``, and nothing is fetched.

    Raises:
        UserError: an unknown name, weights that are unknown, cannot be fetched or do not fit, or a
            size the network cannot take.
    """
    library, _, model = name.rpartition("/")
    if library not in _LIBRARIES or (library == "" and name not in EMBEDDED):
        choices = _all_names()
        meant = next((choice for choice in choices if choice.endswith(f"/{name}")), name)
        raise UserError(
            f"unknown backbone {name!r}{nearest(meant, choices)} "
            f"(accepted: {', '.join(EMBEDDED)}, torchvision/NAME, timm/NAME)"
        )
    asked = weights
    if is_weight_file(weights):
        file, asked = file or weights, "none"
    if image_size is not None and not 1 <= image_size <= limits().image_side:
        raise UserError(f"image_size must be 1 to {limits().image_side}, got {short(image_size)}")
    file = None if file is None else absolute(file)
    tensors = _read_file(file) if file else None
    try:
        parts = _LIBRARIES[library](model, asked, image_size, file is None)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"the weights {weights!r} of backbone {name!r} could not be fetched ({one_line(error)}): "
            f"give the path of a local file ({', '.join(WEIGHT_FILES)}), or 'none' for random weights"
        ) from error
    except Exception as error:  # the libraries' own, of any kind
        raise UserError(f"backbone {name!r} cannot be built{_at(image_size)}: {one_line(error)}") from error
    if file and tensors is not None:
        _load(parts.net, parts.shapes, tensors, f"weights {str(file)!r} of backbone {name!r}")
    num_features = _probe(name, parts, image_size)
    stem = parts.stem or _first_layer(parts.net)
    return Backbone(
        name=name,
        weights=weights,
        net=parts.net,
        num_features=num_features,
        input_size=parts.input_size,
        stem=f"net.{stem}" if stem else None,
        preprocess=parts.preprocess,
    ).eval()


def state_hash(module: nn.Module) -> str:
    """Return a sha256 over names, dtypes, shapes and bytes of the state dict, in hexadecimal.

    It is the identity of a frozen backbone in adapter files. Device and memory format do not matter.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Parts:
    """What a library gives: a network without classifier, and what belongs to it."""

    net: nn.Module
    shapes: Mapping[str, torch.Size]  # of the whole network's tensors, the classifier's included
    input_size: tuple[int, int, int]
    preprocess: Preprocessing
    stem: str | None = None


def _mixer_tiny() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    net: nn.Module = MlpMixer(img_size=28, patch_size=7, num_blocks=4, embed_dim=128, num_classes=0)
    return net


# This project's own networks for small images: how to make one, and the sides it takes (None: any).
EMBEDDED: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
    "resnet20": (ResNetCifar, None),
    "mixer_tiny": (_mixer_tiny, 28),
}


def _embedded(model: str, weights: str, image_size: int | None, fetch: bool) -> _Parts:
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
    return _Parts(net, _shapes(net), (3, side, side), Preprocessing(crop, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def _torchvision(model: str, weights: str, image_size: int | None, fetch: bool) -> _Parts:
    from torchvision import models, transforms

    classifiers = models.list_models(module=models)
    if model not in classifiers:
        if model in models.list_models():
            raise UserError(f"backbone 'torchvision/{model}' is not a classification network")
        raise UserError(f"unknown torchvision network {model!r}{nearest(model, classifiers)}")
    if model.startswith("squeezenet"):
        raise UserError(f"backbone 'torchvision/{model}' has no feature vector: its classifier is convolutional")
    known = models.get_model_weights(model).__members__
    chosen = "DEFAULT" if weights in ("default", "none") else weights
    if chosen not in known:
        raise UserError(
            f"backbone 'torchvision/{model}' has no weights {weights!r}{nearest(weights, known)} "
            f"(accepted: default, none, {', '.join(known)}, or a path ending in {', '.join(WEIGHT_FILES)})"
        )
    transform = known[chosen].transforms()
    (own_side,), (own_resize,) = transform.crop_size, transform.resize_size
    side = image_size or own_side
    resize = transforms.Resize(
        [round(own_resize * side / own_side)], transform.interpolation, antialias=transform.antialias
    )
    crop = transforms.Compose([resize, transforms.CenterCrop([side]), transforms.PILToTensor()])
    fetched = known[chosen] if fetch and weights != "none" else None
    net = models.get_model(model, weights=fetched, **_torchvision_arguments(model, side))
    shapes = _shapes(net)
    _cut_torchvision(net)
    preprocess = Preprocessing(crop, tuple(transform.mean), tuple(transform.std))
    return _Parts(net, shapes, (3, side, side), preprocess)


def _torchvision_arguments(model: str, side: int) -> dict[str, Any]:
    if model.startswith("vit_"):
        return {"image_size": side}
    if model == "maxvit_t":
        return {"input_size": (side, side)}
    if model in ("inception_v3", "googlenet"):
        return {"init_weights": False}  # the other initialisation is slow, and announced as going away
    return {}


def _cut_torchvision(net: nn.Module) -> None:
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


def _timm(model: str, weights: str, image_size: int | None, fetch: bool) -> _Parts:
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    full_name = _timm_name(model, weights)
    # Networks with a fixed input take its size at construction; the others do not know the argument.
    published: Any = timm.get_pretrained_cfg(full_name)
    size: dict[str, Any] = {"img_size": image_size} if image_size and published.fixed_input_size else {}
    net: Any = timm.create_model(full_name, pretrained=fetch and weights != "none", **size)
    shapes = _shapes(net)
    net.reset_classifier(0)
    data = resolve_model_data_config(net)
    if image_size:
        data["input_size"] = (3, image_size, image_size)
    first = net.pretrained_cfg.get("first_conv")
    return _Parts(
        net=net,
        shapes=shapes,
        input_size=tuple(data["input_size"]),
        preprocess=Preprocessing(
            create_transform(**data, is_training=False, normalize=False), tuple(data["mean"]), tuple(data["std"])
        ),
        stem=first if isinstance(first, str) or first is None else first[0],
    )


def _timm_name(model: str, weights: str) -> str:
    """Return ARCHITECTURE or ARCHITECTURE.TAG, checked."""
    import timm

    architecture, _, tag = model.partition(".")
    architectures = timm.list_models()
    if architecture not in architectures:
        raise UserError(f"unknown timm network {architecture!r}{nearest(architecture, architectures)}")
    published = timm.list_models([architecture, f"{architecture}.*"], pretrained=True)
    tags = [name.partition(".")[2] for name in published]
    asked = weights if weights not in ("default", "none") else tag
    if tag and asked != tag:
        raise UserError(f"backbone 'timm/{model}' names the weights {tag!r}, but weights are {weights!r}")
    if asked and asked not in tags:
        raise UserError(
            f"backbone 'timm/{architecture}' has no weights {asked!r}{nearest(asked, tags)} (accepted: "
            f"{', '.join(['default', 'none', *tags])}, or a path ending in {', '.join(WEIGHT_FILES)})"
        )
    if weights == "default" and not tags:
        raise UserError(f"backbone 'timm/{model}' has no pretrained weights: give a path, or 'none'")
    return f"{architecture}.{asked}" if asked else architecture


_LIBRARIES: dict[str, Callable[[str, str, int | None, bool], _Parts]] = {
    "": _embedded,
    "torchvision": _torchvision,
    "timm": _timm,
}


def _all_names() -> list[str]:
    import timm
    from torchvision import models

    libraries = {"torchvision": models.list_models(module=models), "timm": timm.list_models()}
    return [*EMBEDDED, *(f"{library}/{name}" for library, names in libraries.items() for name in names)]


def _shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


def _first_layer(net: nn.Module) -> str | None:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return next((name for name, module in net.named_modules() if isinstance(module, kinds)), None)


def _probe(name: str, parts: _Parts, image_size: int | None) -> int:
    """Return the number of features of one zero image: what the network does, not what it declares."""
    try:
        with torch.no_grad():
            features = parts.net.eval()(torch.zeros(1, *parts.input_size))
    except Exception as error:  # as above
        raise UserError(f"backbone {name!r} fails{_at(image_size)}: {one_line(error)}") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        met = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"backbone {name!r} gives no feature vector per image, but {met}")
    return features.shape[1]


def _at(image_size: int | None) -> str:
    return f" with images of {image_size}x{image_size}" if image_size else ""


def _read_file(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict file, without ever unpickling objects."""
    what = f"weights file {str(file)!r}"
    if not file.exists():
        raise UserError(f"no {what}")
    tensors = (read_safetensors if file.suffix.lower() == ".safetensors" else read_torch)(file, what)
    if not isinstance(tensors, dict):
        raise UserError(f"{what} holds a {type(tensors).__name__}, not a state dict")
    for key, value in tensors.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            raise UserError(
                f"{what} holds a {type(value).__name__} under {short(key)}: "
                "a state dict holds tensors only, by name (save the model's state_dict() by itself)"
            )
    return tensors


def _load(net: nn.Module, whole: Mapping[str, torch.Size], tensors: dict[str, Tensor], what: str) -> None:
    """Load tensors into a network without classifier; ``whole`` has the classifier's names too."""
    own = _shapes(net)
    if not tensors.keys() & whole.keys():
        tensors = _by_order(own, whole, tensors, what)
    tensors = {name: tensor for name, tensor in tensors.items() if name in own or name not in whole}
    with gate(what):
        for name, tensor in net.state_dict().items():
            if name in tensors:
                check_like(tensors[name], tensor, name)
    problems = net.load_state_dict(tensors, strict=False)
    for kind, names in (("lack", problems.missing_keys), ("have an unknown", problems.unexpected_keys)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{what} {kind} tensor {short(names[0])}{more}")


def _by_order(
    own: Mapping[str, torch.Size], whole: Mapping[str, torch.Size], tensors: dict[str, Tensor], what: str
) -> dict[str, Tensor]:
    """Rename tensors that have, in order, the shapes of the network with or without its classifier."""
    shapes = [tensor.shape for tensor in tensors.values()]
    for wanted in (whole, own):
        if shapes == list(wanted.values()):
            _log.warning("%s: no name is the network's, but all shapes are, in order: loaded by order", what)
            return dict(zip(wanted, tensors.values(), strict=True))
    raise UserError(
        f"{what}: no tensor has a name of the network, and their {len(shapes)} shapes are not, in order, "
        f"its {len(whole)} (first name met: {short(next(iter(tensors), None))}, wanted: {next(iter(whole))!r})"
    )
