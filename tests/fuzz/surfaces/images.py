"""Images in every format that is read and that Pillow writes, read by ``metalora.data.decode``."""

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from metalora.data import decode
from metalora.data.images import FORMATS
from tests.fuzz.mutators import change_file
from tests.fuzz.surface import Expect, Mutation, Surface
from tests.fuzz.surfaces.data import draw

NEVER = ("EPS", "PDF")  # which Pillow writes


def make(seeds: Path) -> Callable[[Path], object]:
    """Write an image in each format."""
    Image.init()
    for format in (*FORMATS, *NEVER):
        folder = seeds / format
        folder.mkdir(parents=True)
        for mode in ("RGB", "RGBA", "L", "1", "P"):
            with suppress(Exception):  # this format has no such pixels
                draw(1, 32).convert(mode).save(folder / f"{mode}.img", format)
                if format in FORMATS:
                    decode((folder / f"{mode}.img").read_bytes(), "")
                break
            (folder / f"{mode}.img").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    for mode in ("I;16", "LA", "P"):
        (seeds / f"PNG {mode}").mkdir()
        draw(2, 32).convert("L" if mode == "I;16" else mode).convert(mode).save(seeds / f"PNG {mode}" / "x.img", "PNG")
    (seeds / "JPEG progressive").mkdir()
    draw(3, 32).save(seeds / "JPEG progressive" / "x.img", "JPEG", progressive=True)

    def read(folder: Path) -> object:
        (file,) = folder.iterdir()
        return np.asarray(decode(file.read_bytes(), str(file)))

    return read


def mutate(random: Random, folder: Path) -> Mutation:
    """Change an image's bytes, a PNG's numbers, or put one there that is larger than it looks."""
    (file,) = folder.iterdir()
    data = file.read_bytes()
    png = data.startswith(b"\x89PNG")
    if png and random.random() < 0.3:
        return Mutation(_change_header(random, file), Expect.ANY)
    if random.random() < 0.03:
        return Mutation(_bomb(random, file), Expect.ANY)
    if data.startswith(b"\xff\xd8") and random.random() < 0.05:
        scan = data[data.index(b"\xff\xda") : -2]
        file.write_bytes(data[:-2] + scan * random.choice((50, 1000, 100_000)) + data[-2:])
        return Mutation("a JPEG of many scans", Expect.ANY)
    return Mutation(change_file(random, file), Expect.EITHER if png else Expect.ANY)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _change_header(random: Random, file: Path) -> str:
    """Change a number of a PNG's header, with its checksum."""
    data = file.read_bytes()
    fields = list(struct.unpack(">IIBBBBB", data[16:29]))
    which = random.randrange(7)
    fields[which] = random.choice(
        (0, 1, 2, 3, 4, 6, 8, 16, 255) if which > 1 else (0, 1, 31, 33, 8192, 13300, 2**31 - 1, 2**32 - 1)
    )
    file.write_bytes(data[:8] + _chunk(b"IHDR", struct.pack(">IIBBBBB", *fields)) + data[33:])
    return f"PNG header {fields}"


def _bomb(random: Random, file: Path) -> str:
    """Write a small file of many pixels, that are all there."""
    side, depth, colour = random.choice((4000, 8000, 8192, 13300)), random.choice((8, 16)), random.choice((0, 2, 4, 6))
    line = b"\0" * (1 + side * depth // 8 * {0: 1, 2: 3, 4: 2, 6: 4}[colour])
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b""))
    return f"PNG of {side} x {side} pixels, type {colour} of {depth} bits, in {len(pixels)} bytes"


surface = Surface("images", make, mutate, refused=NEVER, share=3)
