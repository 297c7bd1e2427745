import struct
import subprocess
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from metalora.data import decode
from metalora.data.images import extensions
from metalora.errors import UserError
from tests.unit.data.helpers import encode, pixel, pixels, png, tiff


def on_paper(colour, alpha):
    return np.rint((np.array(colour) * alpha + 255 * (255 - alpha)) / 255).astype(int).tolist()


def test_rgb_is_kept():
    content = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (pixels(encode(Image.fromarray(content))) == content).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = Image.new("RGB", (4, 4), "white").convert(mode)
    assert pixel(encode(image, "TIFF")) == (255, 255, 255)


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_is_ink(file_format):
    ink = np.random.default_rng(1).integers(0, 256, 4)
    image = Image.new("CMYK", (16, 16), tuple(ink.tolist()))
    expected = (255 - ink[:3]) * (255 - ink[3]) / 255
    assert np.abs(pixels(encode(image, file_format)) - expected).max() <= 3  # JPEG loses some


def test_lab_is_the_colour_it_says():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = Image.new("RGB", (4, 4), (200, 30, 90))
    told = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    assert np.abs(pixels(encode(told, "TIFF")) - (200, 30, 90)).max() <= 3


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((255, 0, 0, 255), (255, 0, 0)), ((255, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 51), (204, 204, 204))],
)
def test_transparency_shows_white_paper(colour, expected):
    assert pixel(encode(Image.new("RGBA", (4, 4), colour))) == expected


def test_grey_with_alpha_shows_white_paper():
    assert pixel(encode(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)


@pytest.mark.parametrize("extra", [1, 2])  # colours multiplied by alpha, or not
@pytest.mark.parametrize("grey", [True, False])
def test_every_alpha_shows_white_paper(grey, extra):
    alpha = np.arange(256)
    colour = [200] if grey else [200, 100, 7]
    stored = np.rint(np.outer(alpha / 255, colour)) if extra == 1 else np.tile(colour, (256, 1))
    data = np.column_stack([stored, alpha]).astype(np.uint8).tobytes()
    channels = len(colour) + 1
    found = pixels(tiff(data, (256, 1), [8] * channels, 1 if grey else 2, extra=[extra]))[0]
    expected = [on_paper(colour * 3 if grey else colour, a) for a in alpha]
    assert np.abs(found - expected).max() <= extra % 2  # rounded twice where multiplied


def test_a_palette_with_a_transparent_entry_shows_white_paper():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert pixel(encode(image, transparency=1)) == (10, 20, 30)
    assert pixel(encode(image, transparency=0)) == (255, 255, 255)
    assert pixel(encode(image, "GIF", transparency=0)) == (255, 255, 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixel(encode(image, transparency=b"\x00\xff")) == (255, 255, 255)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_at_every_depth(depth):
    most = 2**depth - 1
    values = np.unique([0, 1, most // 2, most])
    for key in values:
        data = png(depth, 0, values, tRNS=struct.pack(">H", key))
        expected = np.where(values == key, 255, values >> 8 if depth == 16 else values * 255 // most)
        assert pixels(data)[0, :, 0].tolist() == expected.tolist()


def test_a_transparent_colour_is_white_or_refused_where_it_cannot_be_told():
    samples = [[1, 2, 3], [1, 2, 4]]
    key = struct.pack(">HHH", 1, 2, 3)
    assert pixels(png(8, 2, samples, tRNS=key))[0].tolist() == [[255, 255, 255], [1, 2, 4]]
    with pytest.raises(UserError, match=r"cannot decode image x\.png: one of its 16-bit colours is transparent"):
        pixels(png(16, 2, samples, tRNS=key))


@pytest.mark.parametrize(("value", "expected"), [(65535, 255), (32896, 128), (257, 1), (0, 0)])
def test_sixteen_bit_grey_is_scaled(value, expected):
    image = Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
    assert pixel(encode(image)) == (expected,) * 3
    assert pixel(encode(image, "TIFF")) == (expected,) * 3
    assert pixel(encode(image, "PPM")) == (expected,) * 3
    assert pixel(encode(image, "JPEG2000")) == (expected,) * 3
    assert pixel(png(16, 2, [[value] * 3])) == (expected,) * 3
    assert pixel(tiff(struct.pack("<3H", *[value] * 3), (1, 1), [16] * 3, 2)) == (expected,) * 3
    assert pixel(tiff(struct.pack("<H", value), (1, 1), [16], 0)) == (255 - expected,) * 3  # 0 is white


@pytest.mark.parametrize(("value", "expected"), [(4095, 255), (2048, 128), (0, 0)])
def test_twelve_bit_grey_ends_at_white(value, expected):
    packed = int(f"{value:012b}0000", 2).to_bytes(2)
    assert pixel(tiff(packed, (1, 1), [12], 1)) == (expected,) * 3
    assert pixel(b"P5 1 1 4095\n" + struct.pack(">H", value)) == (expected,) * 3


@pytest.mark.parametrize(
    "data",
    [
        tiff(np.float32([0.5]).tobytes(), (1, 1), [32], 1, sample_format=3),
        tiff(np.uint32([2**31]).tobytes(), (1, 1), [32], 1),
        tiff(np.int16([-5]).tobytes(), (1, 1), [16], 1, sample_format=2),
        b"Pf 1 1 -1.0\n" + np.float32([0.5]).tobytes(),
    ],
    ids=["float", "32 bits", "signed", "float map"],
)
def test_numbers_without_a_white_are_refused(data):
    with pytest.raises(UserError, match=r"image x\.png: no one knows which number is white in .*; wanted"):
        pixels(data)


TURNED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize(
    ("file_format", "settings"),
    [
        *((name, {"quality": 95}) for name in ("JPEG", "WEBP", "AVIF", "MPO")),
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_upright(file_format, settings, orientation):
    content = np.kron(np.random.default_rng(0).integers(0, 256, (2, 3)), np.ones((16, 16))).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = decode(encode(Image.fromarray(content), file_format, exif=exif, **settings), "x")
    assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1  # so that nobody turns it again
    expected = TURNED[orientation](content)
    assert image.size == expected.shape[::-1]
    assert np.abs(np.asarray(image)[..., 1].astype(int) - expected).mean() < 8


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_spoils_no_image(file_format, exif):
    assert pixel(encode(Image.new("RGB", (8, 8), "white"), file_format, exif=exif)) == (255, 255, 255)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"not an image", encode(Image.new("RGB", (64, 64)))[:-30]])
def test_broken_bytes_name_the_image_in_one_line(data):
    with pytest.raises(UserError, match=r"^cannot decode image cat\.png: .+$") as caught:
        decode(data, "cat.png")
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_no_program_is_started_whatever_the_file_is_called(monkeypatch):
    data = encode(Image.new("RGB", (4, 4)), "EPS")
    monkeypatch.setattr(subprocess, "check_call", None)
    with pytest.raises(UserError, match=r"cannot decode image x\.png: no image format"):
        pixels(data)


def test_extensions_are_those_of_formats_that_are_read():
    assert {".jfif", ".jpe", ".avif", ".png", ".jp2", ".pgm"} <= extensions()
    assert not {".eps", ".ps", ".pdf", ".h5", ".mpg", ".wmf", ".txt"} & extensions()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_a_changed_bit_of_a_png_is_noticed_or_changes_nothing(mode):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    grey = np.random.default_rng(0).integers(0, 2**16, (16, 16), dtype=np.uint16)
    data = encode(Image.fromarray(grey) if mode == "I;16" else noise.convert(mode), "PNG")
    whole, noticed = pixels(data), 0
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        try:
            met = pixels(changed)
        except UserError as error:
            assert str(error).startswith("cannot decode image x.png: ")  # noqa: PT017
            noticed += 1
        else:
            assert np.array_equal(met, whole)
    assert noticed > 0.9 * len(data) - 40


@pytest.mark.parametrize("more", [bytes(16), b"PK\x03\x04" + bytes(40), b"text behind it", None])
def test_what_is_behind_a_pngs_end_is_no_part_of_it(more):
    data = encode(Image.new("RGB", (4, 4), (10, 20, 30)), "PNG")
    assert np.array_equal(pixels(data + (data if more is None else more)), pixels(data))
