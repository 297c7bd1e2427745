import contextlib
import struct
import subprocess
import sys
import threading
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from metalora.config import DataConfig
from metalora.data import SampleDataset, decode, images, load_table
from metalora.errors import UserError
from tests.unit.data.helpers import encode, pixel, pixels, png, tiff


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
    with pytest.raises(
        UserError, match=r"000\.png: its 4 x 4 pixels are more than max_pixels = 15 \(--max-pixels\) \(7 more like it\)"
    ):
        load_table(DataConfig(data=str(root), max_pixels=15))
    table = load_table(DataConfig(data=str(root), max_pixels=15, verify_images=False))
    with pytest.raises(UserError, match="more than max_pixels = 15"):
        SampleDataset(table, np.arange(8), partial(decode, max_pixels=table.max_pixels))[0]


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


def test_pillows_own_limit_is_as_before(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12345)
    for data in (encode(Image.new("L", (4, 4))), b"broken"):
        with contextlib.suppress(UserError):
            decode(data, "x")
        assert Image.MAX_IMAGE_PIXELS == 12345


def test_threads_decode_no_more_pixels_at_once_than_may_be(monkeypatch):
    monkeypatch.setattr(images, "PIXELS_AT_ONCE", 2 * 64)
    data = encode(Image.new("RGB", (8, 8)))
    load, lock, loading, most = Image.Image.load, threading.Lock(), set(), []
    together = threading.Barrier(2)

    def counted(image):
        with lock:
            loading.add(threading.get_ident())
            most.append(len(loading))
        together.wait(timeout=5)  # as many as may be
        time.sleep(0.05)  # more, if they could, would come now
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


BOMB = zlib.compress(bytes(2**27), 9)  # 128 MiB in 128 KiB
ICON = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, 2**20, 22)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("data", "accepted"),
    [
        (png(8, 0, [[0]], iCCP=b"x\0\0" + BOMB), False),
        (png(8, 0, [[0]], zTXt=b"x\0\0" + BOMB), False),
        (png(8, 0, [[0]], iTXt=b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB), False),
        (ICON + encode(Image.new("L", (9000, 9000))), False),
        (encode(Image.new("L", (8, 8)), "GIF").replace(b"\x2c", b"\x21\xfe" + b"\1a" * 10**6 + b"\0\x2c", 1), True),
        (
            encode(Image.new("L", (64, 64)), "GIF", save_all=True, append_images=[Image.effect_noise((64, 64), 9)] * 2),
            True,
        ),
        (encode(Image.new("L", (8, 8)), "JPEG").replace(b"\xff\xdb", b"\xff" * 10**6 + b"\xff\xdb", 1), True),
        (b"P6\n" + b"#" * 10**6 + b"\n8 8 255\n" + bytes(192), True),
    ],
)
def test_small_files_take_neither_memory_nor_time(data, accepted):
    def peak():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before, start = peak(), time.monotonic()
    with contextlib.nullcontext() if accepted else pytest.raises(UserError, match="cannot decode image x"):
        decode(data, "x")
    assert peak() - before < 2**17  # KiB
    assert time.monotonic() - start < 5
