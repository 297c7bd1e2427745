"""Image files of any kind, and what a table says."""

import io
import struct
import zlib

import numpy as np

from metalora.data import SPLITS, decode


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


def rows_of(table):
    """What a table says, row by row, in the shape of the rows it was written from."""
    return [
        {
            "image": table.read(row),
            "label": table.labels[table.label[row]],
            "domain": table.domains[table.domain[row]],
            "split": SPLITS[table.split[row]],
            "id": table.id[row],
        }
        for row in range(len(table))
    ]
