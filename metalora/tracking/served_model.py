"""The trained model that MLflow serves: it maps images to labels.

MLflow runs this file ("models from code"), so nothing is pickled.
"""

import base64
import binascii
import io
import re
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import DataType
from PIL import Image
from safetensors.torch import save_file

from metalora.errors import UserError
from metalora.files import plain_mode
from metalora.limits import limits
from metalora.models.backbones.base import Backbone
from metalora.models.backbones.build import build_backbone
from metalora.models.persist import Identity, describe, load
from metalora.models.predictor import Predictor
from metalora.reading import short

COLUMNS = ("label", "probability", "labels", "probabilities", "features")
PARAMS: dict[str, Any] = {"top": 1, "features": False}  # of a request, with their defaults
BASE64 = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
PACKAGES = (
    "mlflow",
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "pydantic",
    "pyyaml",
    "pillow",
    "pandas",
    "tensorly",
)


class AdapterModel(PythonModel):
    """The model that MLflow loads; it predicts from a column ``image`` of encoded images (in JSON: base64)."""

    def load_context(self, context: PythonModelContext) -> None:
        """Rebuild backbone, extractor and adapter from the model's artifacts."""
        folder = Path(context.artifacts["adapter"])
        description = describe(folder)
        backbone = _network(description.backbone, context.artifacts["backbone"])
        other = context.artifacts.get("extractor")
        extractor = _network(description.extractor, other) if other and description.extractor else None
        model = load(backbone, folder, extractor)
        if torch.cuda.is_available():
            model.cuda()
        self.predictor = Predictor(model, threads=1)  # a server answers several requests at once

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict ``label`` and its ``probability`` for each image; no rows without images.

        Args:
            context: MLflow's; not used.
            model_input: The request: a column ``image`` with the bytes of image files, or these as base64.
            params: ``top`` N: also ``labels`` and ``probabilities``, the N most probable; ``features``: also these.

        Raises:
            MlflowException: the request holds no images, or too many or too large ones (HTTP status 400).
        """
        asked = {**PARAMS, **(params or {})}
        rows: dict[str, list[Any]] = {name: [] for name in _columns(asked)}
        try:
            images = _images(model_input)
            names = [f"in row {row} of the request" for row in range(len(images))]
            for found in self.predictor.stream(images, asked["top"], asked["features"], names):
                if isinstance(found, UserError):
                    raise found
                labels, probabilities = zip(*found.top, strict=True)
                features = None if found.features is None else found.features.tolist()
                values = (found.label, found.probability, list(labels), list(probabilities), features)
                for name, value in zip(COLUMNS, values, strict=True):
                    if name in rows:
                        rows[name].append(value)
        except UserError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        return pd.DataFrame(rows)


def _columns(asked: dict[str, Any]) -> list[str]:
    """Return the columns of an answer."""
    left_out = {"labels", "probabilities"} if asked["top"] == 1 else set()
    return [name for name in COLUMNS if name not in left_out and (name != "features" or asked["features"])]


def _images(request: Any) -> list[bytes]:
    """Return the image files of a request.

    Raises:
        UserError: no column of images, a value that is no bytes, more images or bytes than `limits` allow.
    """
    if not isinstance(request, pd.DataFrame) or list(request.columns).count("image") != 1:
        met = list(request.columns) if isinstance(request, pd.DataFrame) else type(request).__name__
        raise UserError(f"the request has columns {short(met)}; wanted: one column 'image' of encoded images")
    if len(request) > limits().request_images:
        raise UserError(f"the request has {len(request)} images; at most request_images = {limits().request_images}")
    images = []
    for row, value in enumerate(request["image"]):
        if not isinstance(value, bytes | bytearray | str):
            raise UserError(f"image in row {row} of the request is {short(value)}; wanted: a file, or its base64")
        images.append(_file(value))
    size = sum(map(len, images))
    if size > limits().request_bytes:
        raise UserError(f"the request has {size} bytes of images; at most request_bytes = {limits().request_bytes}")
    return images


def _file(value: bytes | bytearray | str) -> bytes:
    """Return the bytes of a file, which may be given as base64: MLflow decodes it in some forms of requests only."""
    data = value.encode(errors="replace") if isinstance(value, str) else bytes(value)
    if BASE64.fullmatch(data[:64]):  # no image file begins so
        with suppress(binascii.Error):
            return base64.b64decode(data, validate=True)
    return data


def write_network(network: Backbone, file: str) -> None:
    """Write a backbone's tensors for `AdapterModel`; a tensor with several names is written several times."""
    tensors = network.net.state_dict().items()  # clones, since a file takes no two tensors that share memory
    with plain_mode(Path(file)):
        save_file({name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors}, file)


def signature() -> ModelSignature:
    """Return the signature of the model: the columns of its input and output."""
    kinds = {"top": DataType.long, "features": DataType.boolean}
    params = [ParamSpec(name, kind, PARAMS[name]) for name, kind in kinds.items()]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "probability")]),
        params=ParamSchema(params),
    )


def example() -> pd.DataFrame:
    """Return a request: one small image."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(file, "PNG")
    return pd.DataFrame({"image": [file.getvalue()]})


def requirements() -> list[str]:
    """Return the packages that a server needs, in the installed versions."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]


def _network(identity: Identity, file: str) -> Backbone:
    size = None if identity.input_size is None else identity.input_size[-1]
    return build_backbone(identity.name, identity.weights, size, file=file)


set_model(AdapterModel())
