"""The trained model that MLflow serves: it maps images to labels and features.

MLflow runs this file ("models from code"), so nothing is pickled.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import Array, DataType
from safetensors.torch import save_file

from metalora.data.images import decode
from metalora.errors import UserError
from metalora.limits import limits
from metalora.models.backbones.base import Backbone
from metalora.models.backbones.build import build_backbone
from metalora.models.persist import Identity, describe, load
from metalora.reading import short

BATCH = 64
COLUMNS = ("label", "probability", "features")
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
        self.backbone = _network(description.backbone, context.artifacts["backbone"])
        other = context.artifacts.get("extractor")
        extractor = _network(description.extractor, other) if other and description.extractor else None
        self.model = load(self.backbone, folder, extractor)
        if torch.cuda.is_available():
            self.model.cuda()

    @torch.no_grad()
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict ``label``, its ``probability`` and ``features`` of each image; no rows without images.

        Raises:
            MlflowException: the request holds no images, or too many or too large ones (HTTP status 400).
        """
        try:
            images = _images(model_input)
            parts = [self._predict_batch(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        except UserError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)

    def _predict_batch(self, images: list[tuple[bytes, str]]) -> pd.DataFrame:
        """Predict from encoded images and what error messages call them; they are decoded one after another."""
        batch = torch.stack([self.backbone.inputs(decode(*image)) for image in images])
        features = self.model(batch.to(next(self.model.parameters()).device))
        assert self.model.head is not None
        probability, label = self.model.head(features).softmax(1).max(1)
        names = [self.model.spec.labels[i] for i in label.tolist()]
        return pd.DataFrame(dict(zip(COLUMNS, (names, probability.tolist(), features.cpu().tolist()), strict=True)))


def _images(request: Any) -> list[tuple[bytes, str]]:
    """Return the encoded images of a request, and what error messages call them.

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
        name = f"in row {row} of the request"
        if not isinstance(value, bytes | bytearray):
            raise UserError(f"image {name} is {short(value)}; wanted: the bytes of a file (in JSON: base64)")
        images.append((bytes(value), name))
    size = sum(len(image) for image, _ in images)
    if size > limits().request_bytes:
        raise UserError(f"the request has {size} bytes of images; at most request_bytes = {limits().request_bytes}")
    return images


def write_network(network: Backbone, file: str) -> None:
    """Write a backbone's tensors for `AdapterModel`; a tensor with several names is written several times."""
    tensors = network.net.state_dict().items()  # clones, since a file takes no two tensors that share memory
    save_file({name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors}, file)


def signature() -> ModelSignature:
    """Return the signature of the model: the columns of its input and output."""
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Array(DataType.double), "features"),
            ]
        ),
    )


def requirements() -> list[str]:
    """Return the packages that a server needs, in the installed versions."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]


def _network(identity: Identity, file: str) -> Backbone:
    size = None if identity.input_size is None else identity.input_size[-1]
    return build_backbone(identity.name, identity.weights, size, file=file)


set_model(AdapterModel())
