"""Requests to the served model."""

import base64
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

import metalora
from metalora.models.backbones.build import build_backbone
from metalora.tracking.served_model import AdapterModel, write_network


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    backbone = build_backbone("resnet20", "none", 16)
    model = metalora.adapt(backbone, "lora", 2, labels=["a", "b"])
    write_network(backbone, str(folder / "backbone.safetensors"))
    artifacts = {"adapter": metalora.save(model, folder / "adapter"), "backbone": folder / "backbone.safetensors"}
    served = AdapterModel()
    served.load_context(SimpleNamespace(artifacts=artifacts))
    return served


def png(size=8, value=0):
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def test_rows_are_answered_in_their_order(served):
    images = [png(value=value) for value in range(130)]
    answer = served.predict(None, pd.DataFrame({"image": images, "other": 1}), {"features": True})
    assert list(answer.columns) == ["label", "probability", "features"]
    for row in (0, 63, 64, 129):
        alone = served.predict(None, pd.DataFrame({"image": [bytearray(images[row])]}), {"features": True})
        assert answer["label"][row] == alone["label"][0]
        assert answer["features"][row] == pytest.approx(alone["features"][0], abs=1e-5)


def test_no_rows_are_answered_by_none(served):
    answer = served.predict(None, pd.DataFrame({"image": []}))
    assert list(answer.columns) == ["label", "probability"]
    assert len(answer) == 0


@pytest.mark.parametrize("form", [bytes, bytearray, base64.b64encode, lambda file: base64.b64encode(file).decode()])
def test_images_may_be_base64_and_what_is_asked_for_is_answered(served, form):
    """MLflow decodes the base64 of its dataframe forms, but not that of ``inputs`` and ``instances``."""
    alone = served.predict(None, pd.DataFrame({"image": [png()]}))
    answer = served.predict(None, pd.DataFrame({"image": [form(png())]}), {"top": 2})
    assert list(answer.columns) == ["label", "probability", "labels", "probabilities"]
    assert answer["label"][0] == alone["label"][0] == answer["labels"][0][0]
    assert sum(answer["probabilities"][0]) == pytest.approx(1)
    assert list(answer["labels"][0]) in (["a", "b"], ["b", "a"])


@pytest.mark.filterwarnings("ignore")
def test_mlflows_server_takes_every_form_of_request(tmp_path):
    import mlflow
    from mlflow.pyfunc.scoring_server import invocations

    from metalora.tracking import served_model

    backbone = build_backbone("resnet20", "none", 16)
    artifacts = {"adapter": str(metalora.save(metalora.adapt(backbone, "lora", 2, labels=["a", "b"]), tmp_path / "a"))}
    artifacts["backbone"] = str(tmp_path / "backbone.safetensors")
    write_network(backbone, artifacts["backbone"])
    mlflow.pyfunc.save_model(
        str(tmp_path / "model"), python_model=served_model.__file__, signature=served_model.signature(),
        pip_requirements=["mlflow"], artifacts=artifacts, input_example=served_model.example(),
    )  # fmt: skip
    assert (tmp_path / "model" / "serving_input_example.json").is_file()
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    image = base64.b64encode(png()).decode()
    answers = []
    for body in (
        {"dataframe_records": [{"image": image}]},
        {"dataframe_split": {"columns": ["image"], "data": [[image]]}},
        {"instances": [{"image": image}]},
        {"inputs": {"image": [image]}},
        {"inputs": [image], "params": {"top": 1, "features": False}},
    ):
        answer = invocations(json.dumps(body), "application/json", model, model.metadata.get_input_schema())
        assert answer.status == 200
        answers.append(json.loads(answer.response)["predictions"])
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0].keys() == {"label", "probability"}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pd.DataFrame(), r"the request has columns \[\]; wanted: one column 'image'"),
        (pd.DataFrame({"picture": [png()]}), r"columns \['picture'\]; wanted"),
        (pd.DataFrame([[png(), png()]], columns=["image", "image"]), r"columns \['image', 'image'\]; wanted"),
        ({"image": [png()]}, "columns 'dict'; wanted"),
        (np.zeros((2, 3)), "columns 'ndarray'; wanted"),
        (None, "columns 'NoneType'; wanted"),
        *(
            (pd.DataFrame({"image": [png(), value]}), "image in row 1 of the request is .*; wanted: a file")
            for value in (None, np.zeros((999, 9)), [1] * 10**5, {"a": 1}, float("nan"), 10**999)
        ),
        (pd.DataFrame({"image": [png(), "text" * 10**5]}), "cannot decode image in row 1 of the request"),
        (pd.DataFrame({"image": [png(), "no base64!"]}), "cannot decode image in row 1 of the request"),
        (pd.DataFrame({"image": [png(), b""]}), "cannot decode image in row 1 of the request: it is empty"),
        (pd.DataFrame({"image": [b"x" * 99]}), "cannot decode image in row 0 of the request: no image format"),
        (pd.DataFrame({"image": [png(64)[:-30]]}), "cannot decode image in row 0 of the request: "),
        (pd.DataFrame({"image": [png()] * 5000}), "the request has 5000 images; at most request_images = 4096"),
        (
            pd.DataFrame({"image": [bytes(2**22)] * 65}),
            "has 272629760 bytes of images; at most request_bytes = 2684354",
        ),
    ],
)
def test_what_is_no_request_is_the_clients_error_in_one_line(served, request_, message):
    with pytest.raises(MlflowException, match=message) as error:
        served.predict(None, request_)
    assert error.value.get_http_status_code() == 400
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_large_images_are_decoded_one_after_another(served):
    def peak():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    request = pd.DataFrame({"image": [png(2000)] * 8})
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = peak()
    served.predict(None, request)
    assert peak() - before < 3 * 3 * 2000**2
