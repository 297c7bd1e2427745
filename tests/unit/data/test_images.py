import contextlib
import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from metalora.config import DataConfig
from metalora.data import ImageDataset, decode, images, load_table
from metalora.data.images import extensions
from metalora.errors import UserError


def encode(image, file_format="PNG", **settings):
    file = io.BytesIO()
    image.save(file, format=file_format, **settings)
    return file.getvalue()


def pixels(data, **settings):
    image = decode(data, "x.png", **settings)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def pixel(data):
    return tuple(pixels(data)[0, 0].tolist())


def png(depth, colour_type, samples, **chunks):
    """Write a PNG of one row by hand: samples (width, channels), of ``depth`` bits."""
    bits = "".join(f"{value:0{depth}b}" for value in np.ravel(samples))
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))
    header = struct.pack(">IIBBBBB", len(samples), 1, depth, colour_type, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(b"\0" + row), "IEND": b""}
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in parts.items():
        body = name.encode() + data
        file += struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    return file


def tiff(data, size, bits, photometric, sample_format=1, extra=(), tile=()):
    """Write an uncompressed little-endian TIFF by hand: ``bits`` of each sample."""
    tags = {
        256: size[:1],
        257: size[1:],
        258: bits,
        259: [1],
        262: [photometric],
        273: [8],
        277: [len(bits)],
        278: size[1:],
        279: [len(data)],
        **({322: tile[:1], 323: tile[1:], 324: [8], 325: [len(data)]} if tile else {}),
        **({338: extra} if extra else {}),
        339: [sample_format] * len(bits),
    }
    data += b"\0" * (len(data) % 2)
    entries, beyond, start = b"", b"", 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        raw = struct.pack(f"<{len(values)}H", *values)
        place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", start + len(beyond))
        beyond += raw if len(raw) > 4 else b""
        entries += struct.pack("<HHI", tag, 3, len(values)) + place
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + beyond


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


@pytest.mark.parametrize("size", [(0, 5), (1, 300), (300, 1)])
def test_shapes_that_are_no_picture_are_refused(size):
    with pytest.raises(UserError, match=r"cannot decode image x: (it has no pixels|one of its sides|no image format)"):
        decode(b"P6 %d %d 255\n" % size + bytes(900), "x")
    assert decode(encode(Image.new("RGB", (1, 1))), "x").size == (1, 1)
    assert decode(encode(Image.new("RGB", (1, 256))), "x").size == (1, 256)


@pytest.mark.parametrize(("file_format", "mode"), [("PNG", "I;16"), ("WEBP", "RGB"), ("TIFF", "RGBA"), ("GIF", "P")])
def test_an_image_with_too_many_pixels_is_not_decoded(monkeypatch, file_format, mode):
    data = encode(Image.new(mode, (32, 32)), file_format)
    assert len(pixels(data, max_pixels=1024)) == 32
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(UserError, match=r"image x\.png: its 32 x 32 pixels are more than max_pixels = 1023"):
        pixels(data, max_pixels=1023)


def test_tiles_larger_than_any_image_are_not_decoded(monkeypatch):
    data = tiff(bytes(256), (4, 4), [8], 1, tile=(16, 16))
    assert pixel(data) == (0, 0, 0)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(UserError, match=r"image x\.png: its tiles of 256 pixels are more than max_pixels = 255"):
        pixels(data, max_pixels=255)


def test_the_limit_is_kept_for_every_image_that_a_table_reads(make_tree):
    root = make_tree({"a/x": 4, "a/y": 4})
    assert load_table(DataConfig(data=str(root), max_pixels=16)).max_pixels == 16
    with pytest.raises(UserError, match=r"000\.png: its 4 x 4 pixels are more than max_pixels = 15 \(7 more like it\)"):
        load_table(DataConfig(data=str(root), max_pixels=15))
    table = load_table(DataConfig(data=str(root), max_pixels=15, verify_images=False))
    with pytest.raises(UserError, match="more than max_pixels = 15"):
        ImageDataset(table, np.arange(8), np.asarray)[0]


def test_a_large_jpeg_is_decoded_smaller():
    content = np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3)), np.ones((16, 16, 1)))
    data = encode(Image.fromarray(content.astype(np.uint8)), "JPEG", quality=95, subsampling=0)
    for most, scale in [(96 * 128, 1), (96 * 128 - 1, 2), (48 * 64 - 1, 4), (12 * 16, 8)]:
        expected = content.reshape(96 // scale, scale, 128 // scale, scale, 3).mean(axis=(1, 3))
        assert np.abs(pixels(data, max_pixels=most) - expected).mean() < 3
    with pytest.raises(UserError, match="its 128 x 96 pixels are more"):
        pixels(data, max_pixels=12 * 16 - 1)


def test_a_progressive_jpeg_is_not_decoded_smaller_since_that_saves_no_memory():
    data = encode(Image.new("RGB", (96, 128)), "JPEG", progressive=True)
    assert pixels(data, max_pixels=96 * 128).shape == (128, 96, 3)
    with pytest.raises(UserError, match="its 96 x 128 pixels are more than max_pixels"):
        pixels(data, max_pixels=96 * 128 - 1)


def test_scans_without_end_are_refused():
    data = encode(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert pixel(data) == (0, 0, 0)
    with pytest.raises(UserError, match=r"it has \d{4} scans; at most 100 are read"):
        pixels(data[:-2] + b"\xff\xfe\0\x04\xff\xd9" + data[last:-2] * 1000 + data[-2:])  # a comment that seems an end
    assert pixel(data + data[last:] * 1000) == (0, 0, 0)  # a film, say, behind the image


def test_pillows_own_limit_is_as_before():
    before = Image.MAX_IMAGE_PIXELS
    for data in (encode(Image.new("L", (4, 4))), b"broken"):
        with contextlib.suppress(UserError):
            decode(data, "x")
        assert before == Image.MAX_IMAGE_PIXELS


def test_threads_decode_no_more_pixels_at_once_than_may_be(monkeypatch):
    monkeypatch.setattr(images, "PIXELS_AT_ONCE", 2 * 64)
    data = encode(Image.new("RGB", (8, 8)))
    load, lock, loading, most = Image.Image.load, threading.Lock(), set(), []
    together = threading.Barrier(2)

    def counted(image):
        with lock:
            loading.add(threading.get_ident())
            most.append(len(loading))
        together.wait(timeout=5)  # two at once, so that they are counted together
        try:
            return load(image)
        finally:
            with lock:
                loading.discard(threading.get_ident())

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", counted)
    monkeypatch.setattr(images, "_upright_rgb", lambda image, data: None)
    threads = [threading.Thread(target=decode, args=(data, "x")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(most) == 8
    assert max(most) == 2


PEAK = """
import pathlib, sys
from metalora.data.images import decode
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
data = pathlib.Path(sys.argv[1]).read_bytes()
before = peak()
image = decode(data, "x")
print((peak() - before) * 1024 / (image.width * image.height))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("mode", ["I;16", "RGBA"])
def test_no_image_takes_more_than_ten_bytes_a_pixel(tmp_path, mode):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "image.png").write_bytes(encode(Image.new(mode, (3000, 3000)), exif=exif, compress_level=1))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "image.png")]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert float(printed) < 11
