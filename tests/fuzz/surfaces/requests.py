"""Requests to the served model: frames, and what MLflow's server is sent."""

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations

import metalora
from metalora.errors import UserError, one_line
from metalora.tracking import served_model
from tests.fuzz.mutators import VALUES, change_bytes, change_value, dump
from tests.fuzz.surface import Expect, Mutation, Surface
from tests.fuzz.surfaces.data import LABELS, draw

REFUSED = ("csv", "inputs", "instances")  # in which MLflow takes base64 for the image itself
BODY = 2**26
SERVER_FAULT = "INTERNAL_ERROR"  # what MLflow makes of any other error; a server answers with 500
ENDINGS = {"json": "application/json", "csv": "text/csv", "parquet": "application/vnd.apache.parquet"}


def make(seeds: Path) -> Callable[[Path], object]:
    """Save a model, and a request in each form."""
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///:memory:"
    model = _served(seeds.parent / "model")
    image = base64.b64encode(_png()).decode()
    bodies = {
        "split": {"dataframe_split": {"columns": ["image"], "data": [[image], [image]]}},
        "records": {"dataframe_records": [{"image": image}, {"image": image}]},
        "inputs": {"inputs": {"image": [image, image]}},
        "instances": {"instances": [{"image": image}, {"image": image}]},
        "frame": {"frame": 0},
    }
    for kind, body in bodies.items():
        (seeds / kind).mkdir(parents=True)
        (seeds / kind / "request.json").write_text(json.dumps(body), encoding="utf-8")
    for kind in ("csv", "parquet"):
        (seeds / kind).mkdir(parents=True)
    pd.DataFrame({"image": [image]}).to_csv(seeds / "csv" / "request.csv", index=False)
    pd.DataFrame({"image": [_png()]}).to_parquet(seeds / "parquet" / "request.parquet")

    def read(folder: Path) -> object:
        (file,) = folder.iterdir()
        data = file.read_bytes()
        if data.startswith(b'{"frame": '):
            return _predicted(model.unwrap_python_model(), FRAMES[int(data[10:-1])]())
        return _served_answer(model, data, ENDINGS[file.suffix[1:]])

    return read


def mutate(random: Random, folder: Path) -> Mutation:
    """Change a request's body, or ask for another frame."""
    (file,) = folder.iterdir()
    data = file.read_bytes()
    if data.startswith(b'{"frame": '):
        number = random.randrange(1, len(FRAMES))
        file.write_text(f'{{"frame": {number}}}')
        return Mutation(f"frame {number}", Expect.ANY)
    if file.suffix == ".json" and random.random() < 0.6:
        value, recipe = change_value(random, json.loads(data))
        body = dump(value)[:BODY]  # MLflow parses the whole of it, whatever the model says then
        file.write_text(body, encoding="utf-8")
        return Mutation(recipe, Expect.ANY)
    changed, recipe = change_bytes(random, data)
    file.write_bytes(changed)
    return Mutation(recipe, Expect.ANY)


def _served(folder: Path) -> Any:
    backbone = metalora.build_backbone("resnet20", "none", 28)
    metalora.save(metalora.adapt(backbone, "cp", rank=1, labels=LABELS), folder.parent / "adapter")
    served_model.write_network(backbone, str(folder.parent / "backbone.safetensors"))
    mlflow.pyfunc.save_model(
        str(folder), python_model=served_model.__file__, signature=served_model.signature(),
        pip_requirements=["mlflow"],
        artifacts={"adapter": str(folder.parent / "adapter"), "backbone": str(folder.parent / "backbone.safetensors")},
    )  # fmt: skip
    return mlflow.pyfunc.load_model(str(folder))


def _served_answer(model: Any, data: bytes, kind: str) -> object:
    """Answer a request as MLflow's server does; what MLflow itself refuses, or fails at, is refused.

    Raises:
        UserError: it is refused.
    """
    try:
        answer = invocations(
            data.decode() if kind == "application/json" else data, kind, model, model.metadata.get_input_schema()
        )
    except MlflowException as error:
        if error.error_code == SERVER_FAULT and _is_ours(error):
            raise
        raise UserError(f"request: {one_line(error)}") from None
    except Exception as error:
        if _is_ours(error):
            raise
        raise UserError(f"request: {one_line(error)}") from None
    if answer.status != 200:
        raise UserError(f"request: {one_line(ValueError(answer.response))}")
    return answer.response


def _predicted(model: Any, frame: object) -> object:
    """Return what the model itself says of a frame.

    Raises:
        UserError: it refuses it, so that a server answers with 400.
    """
    try:
        answer = model.predict(None, frame)
    except MlflowException as error:
        if error.error_code == SERVER_FAULT:
            raise
        raise UserError(str(error)) from None
    return answer.to_dict("list") if isinstance(answer, pd.DataFrame) else answer


def _is_ours(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if "/metalora/" in trace.tb_frame.f_code.co_filename or trace.tb_frame.f_code.co_filename.endswith(
            "served_model.py"
        ):
            return True
        trace = trace.tb_next
    return False


def _png(side: int = 16) -> bytes:
    encoded = io.BytesIO()
    draw(0, side).save(encoded, "PNG")
    return encoded.getvalue()


def _column(values: Any) -> Callable[[], Any]:
    return lambda: pd.DataFrame({"image": values})


def _large(side: int, count: int) -> Callable[[], Any]:
    def make() -> Any:
        encoded = io.BytesIO()
        from PIL import Image

        Image.new("RGB", (side, side)).save(encoded, "PNG", compress_level=1)
        return pd.DataFrame({"image": [encoded.getvalue()] * count})

    return make


FRAMES: tuple[Callable[[], Any], ...] = (
    _column([_png(), _png(20)]),
    _column([]),
    lambda: pd.DataFrame(),
    lambda: pd.DataFrame({"x": [1]}),
    lambda: pd.DataFrame({"image": [_png()], "more": [1]}),
    lambda: pd.DataFrame([[_png(), _png()]], columns=["image", "image"]),
    lambda: pd.DataFrame({"image": [_png()]}, index=[7]),
    lambda: pd.DataFrame({("image", "x"): [_png()]}),
    lambda: pd.DataFrame({0: [_png()]}),
    lambda: pd.Series([_png()], name="image"),
    lambda: [_png()],
    lambda: {"image": [_png()]},
    lambda: _png(),
    lambda: np.array([_png()], dtype=object),
    lambda: np.zeros((1, 3, 8, 8)),
    lambda: None,
    lambda: "x",
    _column([bytearray(_png())]),
    _column([memoryview(_png())]),
    _column([np.frombuffer(_png(), np.uint8)]),
    _column([base64.b64encode(_png()).decode()]),
    _column([np.zeros((8, 8, 3), np.uint8)]),
    _column([[1, 2, 3]]),
    _column([_png(), None]),
    _column([_png(), float("nan")]),
    _column(pd.array([_png()], dtype="object")),
    _column(pd.Categorical(["a"])),
    _column(pd.to_datetime(["2024-01-01"])),
    _column([b""] * 5000),
    _column([_png()] * 5000),
    _column([_png().ljust(2**24, b"\0")] * 20),
    _large(8000, 20),
    _large(4000, 3),
    *(_column(pd.Series([value], dtype=object)) for value in VALUES),
)

surface = Surface("requests", make, mutate, named=("request", "image"), refused=REFUSED, share=1.5)
