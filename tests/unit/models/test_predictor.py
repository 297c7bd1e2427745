"""Predictions from images as people have them; the oracle is the backbone's own preprocessing and `logits`."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metalora
from metalora import UserError
from metalora.models.predictor import Predictor

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
LABELS = ["cat", "dog", "owl"]


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return metalora.build_backbone("resnet20", "none")


@pytest.fixture(scope="module")
def model(backbone):
    torch.manual_seed(1)
    return metalora.adapt(backbone, "cp", 2, labels=LABELS)


@pytest.fixture
def wanted(backbone, model):
    """What the model says of an image that is prepared by hand."""

    def wanted(image):
        with torch.no_grad():
            return model.eval().logits(backbone.inputs(image)[None]).softmax(1)[0]

    return wanted


def file_of(image, kind="PNG", **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


TENSOR = torch.from_numpy(PIXELS).movedim(-1, 0)
PICTURE = Image.fromarray(PIXELS)
FORMS = {
    "picture": PICTURE,
    "bytes": file_of(PICTURE),
    "bytearray": bytearray(file_of(PICTURE)),
    "array": PIXELS,
    "floats": PIXELS / 255,
    "alpha": np.concatenate([PIXELS, np.full((40, 30, 1), 255, np.uint8)], 2),
    "tensor": TENSOR,
    "float tensor": TENSOR.float() / 255,
    "palette": PICTURE.convert("RGBA"),
    "list": [PICTURE],
    "generator": (one for one in [PIXELS]),
    "batch of arrays": PIXELS[None],
    "batch of tensors": TENSOR[None],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_is_the_same_image(model, wanted, form):
    probabilities = wanted(PICTURE)
    (found,) = model.predict(FORMS[form], top=3, features=True)
    assert [label for label, _ in found.top] == [LABELS[i] for i in probabilities.argsort(descending=True)]
    assert found.label == found.top[0][0]
    assert [value for _, value in found.top] == pytest.approx(probabilities.sort(descending=True).values.tolist())
    assert found.features.shape == (64,)


def test_grey_images_are_grey(model, wanted):
    grey = PICTURE.convert("L")
    best = wanted(grey).max().item()
    array = np.asarray(grey)
    for form in (grey, array, array[..., None], torch.from_numpy(array.copy()), torch.from_numpy(array.copy())[None]):
        assert model.predict(form)[0].probability == pytest.approx(best)


def test_files_are_read_turned_and_laid_on_white_as_in_a_training(model, tmp_path, wanted):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    upright = PICTURE.transpose(Image.Transpose.ROTATE_270)
    with Image.open(tmp_path / "turned.png") as opened:
        for form in (tmp_path / "turned.png", str(tmp_path / "turned.png"), opened):
            assert model.predict(form)[0].probability == pytest.approx(wanted(upright).max().item())
    clear = Image.fromarray(np.zeros((9, 9, 4), np.uint8))
    white = Image.new("RGB", (9, 9), "white")
    assert model.predict(clear)[0].probability == pytest.approx(wanted(white).max().item())


def test_images_are_answered_in_their_order_and_the_mode_stays(model):
    images = [np.full((8, 8, 3), value, np.uint8) for value in range(0, 250, 25)]
    model.train()
    found = model.predict(images, batch_size=3, features=True)
    assert model.training
    for image, one in zip(images, found, strict=True):
        assert torch.allclose(one.features, model.predict(image, features=True)[0].features, atol=1e-5)
    assert model.predict([]) == []


def test_what_cannot_be_read_is_yielded_in_its_place(model):
    found = list(Predictor(model, batch_size=2).stream([PIXELS, b"no image", PIXELS], names="abc"))
    assert [isinstance(one, UserError) for one in found] == [False, True, False]
    assert "cannot decode image b" in str(found[1])
    assert found[0] == found[2]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "cannot predict from int; wanted: a path"),
        ([3], "image number 0 is 3; wanted: a path"),
        ("nowhere.png", "cannot read image 'nowhere.png': No such file"),
        (PIXELS[..., :2], r"of shape \(40, 30, 2\), is no image; wanted: \(H, W\)"),
        (TENSOR[:2], r"a tensor of shape \(2, 40, 30\), is no image; wanted: \(H, W\), \(1, H, W\)"),
        (PIXELS.astype(int), "is of type int64; wanted: uint8, or floats from 0 to 1"),
        (TENSOR / 128 - 1, "has values from .* to .*; wanted: 0 to 1, or uint8. What is preprocessed already goes to"),
        (torch.full((3, 4, 4), torch.nan), "has values from nan to nan"),
        (b"no image", "cannot decode image number 0"),
        (Image.new("F", (8, 8)), "number 0: no one knows which number is white in pixels of mode F"),
    ],
)
def test_what_is_no_image_is_refused(model, image, message):
    with pytest.raises(UserError, match=message):
        model.predict(image)


def test_a_model_without_labels_or_inputs_cannot_predict(backbone, model):
    with pytest.raises(UserError, match="no classifier head"):
        metalora.adapt(backbone, "lora", 1).predict(PIXELS)
    with pytest.raises(UserError, match="top must be 1 or more, got 0"):
        model.predict(PIXELS, top=0)
    plain = metalora.adapt(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), labels=LABELS
    )
    with pytest.raises(UserError, match=r"set model\.inputs"):
        plain.predict(PIXELS)
    plain.inputs = backbone.inputs
    assert plain.predict(PIXELS)[0].label in LABELS
