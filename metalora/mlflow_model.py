"""The trained model as MLflow serves it: images in, labels and features out.

MLflow runs this file ("models from code"), so nothing is pickled.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import Array, DataType
from safetensors.torch import save_file

from metalora.data.images import decode
from metalora.models.backbones import Backbone, build_backbone
from metalora.models.persist import Identity, describe, load

BATCH = 64
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
    """Predicts from a column ``image`` of encoded images (PNG, JPEG, ...; base64 in JSON)."""

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
        """Return ``label``, its ``probability``, and ``features`` for each image."""
        names = [f"in row {row} of the request" for row in range(len(model_input))]
        images = list(zip(model_input["image"], names, strict=True))
        device = next(self.model.parameters()).device
        parts = []
        for start in range(0, len(images), BATCH):
            batch = torch.stack([self.backbone.preprocess(decode(*image)) for image in images[start : start + BATCH]])
            features = self.model(batch.to(device))
            assert self.model.head is not None
            probability, label = self.model.head(features).softmax(1).max(1)
            parts.append(
                pd.DataFrame(
                    {
                        "label": [self.model.spec.labels[i] for i in label.tolist()],
                        "probability": probability.tolist(),
                        "features": features.cpu().tolist(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)


def write_network(network: Backbone, file: str) -> None:
    """Write a backbone's tensors, for `AdapterModel` to read; those that it has under several names, several times."""
    tensors = network.net.state_dict().items()  # clones, since a file takes no two tensors that share memory
    save_file({name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors}, file)


def signature() -> ModelSignature:
    """Return what goes in and what comes out."""
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
    """Return the packages a server needs, in the versions at hand."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]


def _network(identity: Identity, file: str) -> Backbone:
    size = None if identity.input_size is None else identity.input_size[-1]
    return build_backbone(identity.name, identity.weights, size, file=file)


set_model(AdapterModel())
