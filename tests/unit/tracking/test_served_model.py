"""Requests to the served model."""

import io
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
    answer = served.predict(None, pd.DataFrame({"image": images, "other": 1}))
    assert list(answer.columns) == ["label", "probability", "features"]
    for row in (0, 63, 64, 129):
        alone = served.predict(None, pd.DataFrame({"image": [bytearray(images[row])]}))
        assert answer["label"][row] == alone["label"][0]
        assert answer["features"][row] == pytest.approx(alone["features"][0], abs=1e-5)


def test_no_rows_are_answered_by_none(served):
    answer = served.predict(None, pd.DataFrame({"image": []}))
    assert list(answer.columns) == ["label", "probability", "features"]
    assert len(answer) == 0


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
            (pd.DataFrame({"image": [png(), value]}), "image in row 1 of the request is .*; wanted: the bytes")
            for value in ("text" * 10**5, None, np.zeros((999, 9)), [1] * 10**5, {"a": 1}, float("nan"), 10**999)
        ),
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
