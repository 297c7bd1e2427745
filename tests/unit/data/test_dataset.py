import io
import warnings

import numpy as np
import pytest
from PIL import Image

from metalora.data import decode
from metalora.errors import UserError


def encode(image, file_format="PNG", **settings):
    file = io.BytesIO()
    image.save(file, format=file_format, **settings)
    return file.getvalue()


def pixel(data):
    image = decode(data, "x.png")
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_rgb_is_kept():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (np.asarray(decode(encode(Image.fromarray(pixels)), "x")) == pixels).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = Image.new("RGB", (4, 4), "white").convert(mode)
    assert pixel(encode(image, "TIFF")) == (255, 255, 255)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((255, 0, 0, 255), (255, 0, 0)), ((255, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 51), (204, 204, 204))],
)
def test_transparency_shows_white_paper(colour, expected):
    assert pixel(encode(Image.new("RGBA", (4, 4), colour))) == expected


def test_grey_with_alpha_shows_white_paper():
    assert pixel(encode(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)


def test_a_palette_with_a_transparent_entry_shows_white_paper():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert pixel(encode(image, transparency=1)) == (10, 20, 30)
    assert pixel(encode(image, transparency=0)) == (255, 255, 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixel(encode(image, transparency=b"\x00\xff")) == (255, 255, 255)


@pytest.mark.parametrize(("value", "expected"), [(65535, 255), (32896, 128), (257, 1), (0, 0)])
def test_sixteen_bit_grey_is_scaled(value, expected):
    image = Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
    assert pixel(encode(image)) == (expected,) * 3
    assert pixel(encode(image, "TIFF")) == (expected,) * 3


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"not an image", encode(Image.new("RGB", (64, 64)))[:-30]])
def test_broken_bytes_name_the_image_in_one_line(data):
    with pytest.raises(UserError, match=r"^cannot decode image cat\.png: .+$") as caught:
        decode(data, "cat.png")
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


@pytest.mark.parametrize("limit", [10, 900])
def test_a_decompression_bomb_names_the_image(monkeypatch, limit):
    data = encode(Image.new("RGB", (32, 32)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"cannot decode image big\.png: Image size"):
        decode(data, "big.png")
