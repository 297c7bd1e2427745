"""Folders of images from strangers, read by ``load_table``."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.mutators import change_file, replace_file
from tests.fuzz.surface import Expect, Mutation, Surface
from tests.fuzz.surfaces.data import read_all, write_tree

NAMES = (b"\xff.png", b"a\nb.png", b"-r.png", b"%s.png", b"\xc3\xa9.png", b"e\xcc\x81.png", b"x" * 251 + b".png",
    b" .png", b"~.png",
         b".hidden.png", b"con.png", b"a.PNG", b"0.png.parquet", b"\x1b[31m.png", b"a.eps", b"[x].png",
         b"desktop.ini")  # fmt: skip


def make(seeds: Path) -> Callable[[Path], object]:
    """Write a folder of images."""
    write_tree(seeds / "tree" / "data")
    return lambda folder: read_all(folder / "data")


def mutate(random: Random, folder: Path) -> Mutation:
    """Change what lies in the folder."""
    root, outside = folder / "data", folder.parent / "outside"
    file = random.choice(sorted(root.rglob("*.png")))
    domain = random.choice(sorted(root.iterdir()))
    kind = random.choice(("bytes", "file", "name", "copy", "folder name", "link up", "link", "socket", "program",
    "empty",
                          "deep", "missing"))  # fmt: skip
    name = random.choice(NAMES)
    if kind == "bytes":
        return Mutation(change_file(random, file), Expect.ANY)
    if kind == "file":
        return Mutation(replace_file(random, file), Expect.ANY)
    if kind == "name":
        file.rename(file.parent / os.fsdecode(name))
    elif kind == "copy":
        (file.parent / os.fsdecode(name)).write_bytes(file.read_bytes())
    elif kind == "folder name":
        domain.rename(root / os.fsdecode(name))
    elif kind == "link up":
        (random.choice((domain, file.parent)) / "up").symlink_to(
            random.choice((root, domain, folder, Path("/"), Path()))
        )
    elif kind == "link":
        (file.parent / "link.png").symlink_to(
            random.choice((outside / "canary", Path("/dev/stdin"), Path("/proc/self/mem"), file))
        )
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            os.chdir(file.parent)  # a socket's path is short
            bound.bind("socket.png")
            os.chdir(folder.parent)
    elif kind == "program":
        file.write_bytes(
            f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({outside}/ran) (w) file\nshowpage\n".encode()
        )
    elif kind == "empty":
        (root / "empty" / random.choice(("", "circle"))).mkdir(parents=True)
    elif kind == "deep":
        deep = file.parent / "/".join("d" * 200 for _ in range(random.choice((3, 12))))
        deep.mkdir(parents=True)
        (deep / "0.png").write_bytes(file.read_bytes())
    else:
        file.unlink()
    return Mutation(f"{kind} {name!r} {file.relative_to(folder)}", Expect.ANY)


surface = Surface("folders", make, mutate, named=("{folder}", "image", "domain", "data"))
