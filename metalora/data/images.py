"""Decode images to upright 8-bit RGB: the only place where images are decoded.

Formats: those that Pillow decodes by itself (`FORMATS`), whatever the file's name. Left out are formats for which
Pillow starts a program (EPS: Ghostscript) or opens another file inside (IPTC), formats that it only identifies (WMF,
BUFR, GRIB, HDF5, MPEG, XVTHUMB), and formats of measurements, whose numbers have no white (FITS, MCIDAS, SPIDER).

Pixels: of an animation or a file with several images, the first image. Transparent pixels become white. 16 bits
become 8 (the high byte). Numbers without a known value of white (32 bits, floats, signed numbers) are refused. Colour
profiles are not applied, as in torchvision and timm: the published weights were trained without them.

Memory: at most `limits().image_bytes` of file and ``max_pixels`` of image, checked before anything is decoded; larger
JPEGs are decoded at 1/2, 1/4 or 1/8 of their size. All threads of a process together decode at most `PIXELS_AT_ONCE`.
"""

import functools
import io
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from metalora.config import DataConfig
from metalora.errors import UserError, given_as, one_line
from metalora.limits import limits

# formats without a signature come last: they take what they can
FORMATS = (
    *("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "MPO", "DIB", "ICO", "CUR", "ICNS"),
    *("PSD", "QOI", "DDS", "BLP", "FTEX", "GBR", "SGI", "SUN", "FLI", "PCX", "DCX", "MSP", "PIXAR", "XBM", "XPM"),
    *("PCD", "IM", "IMT", "TGA"),
)
PIXELS_AT_ONCE = 2**27

_PILLOW = r"PIL\."
_MAX_SCANS = 100  # of a JPEG; progressive ones have about ten, and each costs a pass over the image
_MAX_RATIO = 256  # of the sides; networks' transforms enlarge the short side to hundreds of pixels
_WHITE_IS_KNOWN = ("PNG", "PPM", "TIFF", "JPEG2000")  # formats whose 16 bits of grey end at white
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a JPEG's segment; others have none behind them
_BITS_PER_SAMPLE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH = 258, 262, 322, 323  # tags of TIFF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, name: str, max_pixels: int = DataConfig().max_pixels) -> Image.Image:
    """Decode an image to upright RGB; the module's docstring says how other kinds of pixels are converted.

    Args:
        data: The bytes of an image file in one of `FORMATS`.
        name: Name of the image in error messages.
        max_pixels: Largest number of pixels that is decoded.

    Raises:
        UserError: the bytes are no image, or the image is of a kind that is not read, truncated or too large.
    """
    try:
        if not data:
            raise ValueError("it is empty")
        if len(data) > limits().image_bytes:
            raise ValueError(f"its file has more than image_bytes = {limits().image_bytes} bytes")
        with _open(data) as image:
            _limit(image, data, max_pixels)
            with _room_for(image.width * image.height):
                image.load()
                if image.width * image.height > max_pixels:  # icons tell their size only now
                    raise ValueError(_too_large(image, max_pixels))
                return _upright_rgb(image, data)
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        raise UserError(f"cannot decode image {name}: {one_line(error)}") from None


def describe(data: bytes) -> tuple[str, int, int]:
    """Return the format, and the width and height as stored, of an image that `decode` accepts."""
    with _open(data) as image:
        return str(image.format), image.width, image.height


@functools.cache
def extensions() -> frozenset[str]:
    """Return the file name extensions of `FORMATS`, in lower case and with their dot."""
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in FORMATS)


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # an older Pillow has no AVIF


def _drop_pillows_warnings() -> None:
    """Have Pillow be silent about broken metadata, and formats that it will drop: here, all errors are of one line."""
    # not by catch_warnings, which is not for threads, and has Python show anew what it has shown once
    for kind in (UserWarning, DeprecationWarning):
        if ("ignore", None, kind, re.compile(_PILLOW), 0) not in warnings.filters:
            warnings.filterwarnings("ignore", category=kind, module=_PILLOW)


_opening = threading.Lock()


def _open(data: bytes) -> Image.Image:
    """Read the header. Pillow's own limit is lifted meanwhile: `_limit` knows which images can be decoded smaller."""
    _drop_pillows_warnings()
    with _opening:
        pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=_formats())
        except UnidentifiedImageError:
            raise ValueError("no image format, or kind of pixels, that is read") from None
        finally:
            Image.MAX_IMAGE_PIXELS = pillows_limit


def _limit(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Set a large JPEG to be decoded smaller; raise an error if the image is still too large."""
    if not (image.width and image.height):
        raise ValueError(f"it has no pixels: its size is {image.width} x {image.height}")
    if max(image.size) > _MAX_RATIO * min(image.size):
        raise ValueError(f"one of its sides, {image.width} x {image.height}, is more than {_MAX_RATIO} times the other")
    if image.format == "PNG":
        _check_chunks(data)
    if image.format in ("JPEG", "MPO"):
        scans = _count_scans(data)
        if scans > _MAX_SCANS:
            raise ValueError(f"it has {scans} scans; at most {_MAX_SCANS} are read")
        if scans == 1:  # with more, the decoder holds the whole image in full size
            width, height = image.size
            scale = next((s for s in (1, 2, 4, 8) if -(-width // s) * -(-height // s) <= max_pixels), 1)
            image.draft(None, (max(1, width // scale), max(1, height // scale)))
    if image.width * image.height > max_pixels:
        raise ValueError(_too_large(image, max_pixels))
    tile = _tags(image).get(_TILE_WIDTH, 0) * _tags(image).get(_TILE_LENGTH, 0)
    if tile > max_pixels:  # it is decoded as a whole, however small the image
        raise ValueError(f"its tiles of {tile} pixels are more than max_pixels = {max_pixels}{given_as('max_pixels')}")


def _tags(image: Image.Image) -> dict[int, Any]:
    """Return the tags of a TIFF; another image has none."""
    return dict(image.tag_v2) if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _too_large(image: Image.Image, max_pixels: int) -> str:
    return f"its {image.width} x {image.height} pixels are more than max_pixels = {max_pixels}{given_as('max_pixels')}"


def _check_chunks(data: bytes) -> None:
    """Check the CRC-32 of a PNG's pixels, header and palette, as libpng does; Pillow leaves out that of the pixels."""
    place, view = 8, memoryview(data)
    while place + 12 <= len(data) and data[place - 8 : place - 4] != b"IEND":  # what is behind the end is no part of it
        end = place + 8 + int.from_bytes(data[place : place + 4])
        critical = not data[place + 4] & 0x20
        if critical and zlib.crc32(view[place + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError(f"it is damaged: its chunk at byte {place} is not what was written (CRC-32)")
        place = end + 4


def _count_scans(data: bytes) -> int:
    """Count the scans of a JPEG's first image, without those of the thumbnails in its segments."""
    scans, place = 0, 2
    while (marker := _MARKER.search(data, place)) and marker[0] != b"\xff\xd9":
        scans += marker[0] == b"\xff\xda"
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])  # behind its segment
    return scans


_room = threading.Condition()
_pixels_now = 0


@contextmanager
def _room_for(pixels: int) -> Iterator[None]:
    """Wait until other threads leave room to decode so many pixels; an image above the limit is decoded alone."""
    global _pixels_now
    with _room:
        _room.wait_for(lambda: not _pixels_now or _pixels_now + pixels <= PIXELS_AT_ONCE)
        _pixels_now += pixels
    try:
        yield
    finally:
        with _room:
            _pixels_now -= pixels
            _room.notify_all()


def _upright_rgb(image: Image.Image, data: bytes) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image, data)
    if rgb is not image:
        image.close()  # frees its pixels before the next copy is made
    if turn is not None:
        rgb = rgb.transpose(turn)
        rgb.info.clear()  # so that nobody turns it again
    return rgb


def _to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    if image.format == "PNG":
        _fit_key(image, depth=data[24])
    if image.mode == "F" or image.mode.startswith("I"):
        return _high_byte(image).convert("RGB")
    if image.has_transparency_data:
        paper = Image.new("RGB", image.size, "white")
        if image.mode not in ("LA", "RGBA"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        paper.paste(image, mask=image)
        return paper
    return image if image.mode == "RGB" else image.convert("RGB")


def _fit_key(image: Image.Image, depth: int) -> None:
    """Fit a PNG's transparent colour to its pixels: Pillow makes these 8 bits deep, but not every such key."""
    key = image.info.get("transparency")
    if key is not None and image.mode == "RGB" and depth == 16:
        raise ValueError("one of its 16-bit colours is transparent, and Pillow keeps 8 bits of them; wanted: alpha")
    if key is not None and image.mode in ("1", "L"):
        image.info["transparency"] = min(key * 255 // (2**depth - 1), 255)


def _high_byte(image: Image.Image) -> Image.Image:
    """Return 16-bit grey as 8-bit grey, white where it is transparent."""
    tags = _tags(image)
    if image.format not in _WHITE_IS_KNOWN or image.mode == "F" or (image.mode == "I" and tags):
        raise ValueError(
            f"no one knows which number is white in {image.format} pixels of mode {image.mode}; wanted: 8 bits, or "
            "unsigned 16 bits of PNG, PGM, TIFF or JPEG 2000"
        )
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]  # 12 bits stay 12
    table = [min(value >> (bits - 8), 255) for value in range(2**16)]
    if tags.get(_PHOTOMETRIC) == 0:  # Pillow turns white and black of 8 bits only
        table = [255 - value for value in table]
    if "transparency" in image.info:
        table[image.info["transparency"]] = 255
    return image.convert("I").point(table, "L")


def _orientation(image: Image.Image) -> int:
    """Return the Orientation of the image's EXIF or XMP; 1 is upright. (Pillow turns TIFFs itself and says 1 then.)"""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF is common, and says nothing about the pixels
        return 1
