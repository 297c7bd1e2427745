"""Backbones by name: this project's small ResNet-20 and MLP-Mixer, torchvision's and timm's classification networks.

A backbone is a network without its classifier, together with the preprocessing its weights expect.
"""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from metalora.errors import UserError, one_line
from metalora.limits import limits
from metalora.models.backbones.base import LIBRARIES, Backbone, Parts
from metalora.models.backbones.weights import load_weights, read_weights
from metalora.places import WEIGHT_FILES, absolute, is_weight_file
from metalora.reading import short
from metalora.registry import nearest


def build_backbone(
    name: str, weights: str = "default", image_size: int | None = None, *, file: str | Path | None = None
) -> Backbone:
    """Build a backbone by name, in eval mode.

    The classifier tensors of a file are ignored, since the network has no classifier. All other tensors must have
    the network's names and shapes. One exception: if *no* name is the network's, but the tensors have, in order,
    exactly the network's shapes, the file is loaded by order, and a warning is logged.

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
        UserError: the name or the weights are unknown, the weights cannot be fetched or do not fit, or the network
            cannot take the size.
    """
    library, _, model = name.rpartition("/")
    if library not in LIBRARIES or (not library and name not in LIBRARIES.make(library).names()):
        raise _unknown(name)
    asked = weights
    if is_weight_file(weights):
        file, asked = file or weights, "none"
    if image_size is not None and not 1 <= image_size <= limits().image_side:
        raise UserError(f"image_size must be 1 to {limits().image_side}, got {short(image_size)}")
    if file is None and weights != "none" and (os.sep in weights or absolute(weights).is_file()):
        raise UserError(f"weights {weights!r}: the name of a file of weights ends in {', '.join(WEIGHT_FILES)}")
    file = None if file is None else absolute(file)
    tensors = read_weights(file) if file else None
    try:
        parts = LIBRARIES.make(library).build(model, asked, image_size, file is None)
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
        load_weights(parts.net, parts.shapes, tensors, f"weights {str(file)!r} of backbone {name!r}")
    num_features = _probe(name, parts, image_size)
    stem = parts.stem or _first_layer(parts.net)
    return Backbone(
        name=name,
        weights=weights,
        net=parts.net,
        num_features=num_features,
        stem=f"net.{stem}" if stem else None,
        inputs=parts.inputs,
    ).eval()


def _unknown(name: str) -> UserError:
    """Return the error for an unknown backbone."""
    own = {
        library: [f"{library}/{model}" if library else model for model in LIBRARIES.make(library).names()]
        for library in LIBRARIES
    }
    choices = [choice for names in own.values() for choice in names]
    meant = next((choice for choice in choices if choice.endswith(f"/{name}")), name)
    forms = [*own[""], *(f"{library}/NAME" for library in LIBRARIES if library)]
    return UserError(f"unknown backbone {name!r}{nearest(meant, choices)} (accepted: {', '.join(forms)})")


def _first_layer(net: nn.Module) -> str | None:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return next((name for name, module in net.named_modules() if isinstance(module, kinds)), None)


def _probe(name: str, parts: Parts, image_size: int | None) -> int:
    """Return the number of features of one zero image, measured since a network may declare another number."""
    try:
        with torch.no_grad():
            features = parts.net.eval()(parts.inputs.prepare(parts.inputs.example(1)))
    except Exception as error:  # as above
        raise UserError(f"backbone {name!r} fails{_at(image_size)}: {one_line(error)}") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        met = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"backbone {name!r} gives no feature vector per image, but {met}")
    return features.shape[1]


def _at(image_size: int | None) -> str:
    return f" with images of {image_size}x{image_size}" if image_size else ""
