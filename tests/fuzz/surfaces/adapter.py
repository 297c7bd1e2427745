"""Adapter folders, read by ``metalora.load``."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import metalora
from tests.fuzz.mutators import change_file, change_value, dump, replace_file
from tests.fuzz.surface import Expect, Mutation, Surface
from tests.fuzz.surfaces.networks import MODES, tiny_backbone, tiny_images, tiny_model
from tests.fuzz.surfaces.tensors import change_tensors

TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"


def make(seeds: Path) -> Callable[[Path], object]:
    """Save an adapter of each format."""
    backbone, images = tiny_backbone(), tiny_images()
    for format in MODES:
        metalora.save(tiny_model(backbone, format), seeds / format)

    def read(folder: Path) -> object:
        model = metalora.load(backbone, folder)
        return model.adapter_state(), model.logits(images)

    return read


def mutate(random: Random, folder: Path) -> Mutation:
    """Change an adapter, a file's bytes or what its files say."""
    kind = random.choice(("bytes", "bytes", "description", "description", "tensors", "file"))
    file = random.choice(sorted(folder.iterdir()))
    if kind == "bytes":
        return Mutation(change_file(random, file), Expect.EITHER)
    if kind == "file":
        return Mutation(replace_file(random, file), Expect.EITHER)
    _unseal(folder / DESCRIPTION)
    if kind == "tensors":
        recipe, expect = change_tensors(random, folder / TENSORS, Expect.ANY)
    else:
        recipe, expect = _change_description(random, folder / DESCRIPTION), Expect.ANY
    return Mutation(recipe, expect)


LARGE = 2**20


def _unseal(file: Path) -> None:
    """Take the checksum out, as in an adapter of older code, or of somebody who means harm."""
    description = json.loads(file.read_text(encoding="utf-8"))
    description.pop("sha256", None)
    file.write_text(json.dumps(description), encoding="utf-8")


def _change_description(random: Random, file: Path) -> str:
    description: Any = json.loads(file.read_text(encoding="utf-8"))
    recipe = text = ""
    for _ in range(random.choice((1, 1, 1, 2))):
        description, done = change_value(random, description)
        recipe += f"{file.name}: {done} "
        text = dump(description)
        if len(text) > LARGE:  # and made larger again it would take minutes to write
            break
    file.write_text(text, encoding="utf-8")
    return recipe.strip()


surface = Surface("adapter", make, mutate, checked=True, share=2)
