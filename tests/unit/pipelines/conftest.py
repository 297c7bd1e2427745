from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.backend.mailbox import Mailbox, _Box


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Mailbox:
    """A mailbox in this process, without Ray."""

    class Actor:
        def __init__(self) -> None:
            self.box = _Box.__ray_metadata__.modified_class()  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> Any:
            act = getattr(self.box, name)
            return SimpleNamespace(remote=lambda *given: act(*given) if name != "post" else (act(*given), "reference"))

    monkeypatch.setattr("ray.get", lambda value: value)
    mailbox = object.__new__(Mailbox)
    mailbox.box = Actor()
    return mailbox


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DomainBed-style tree: domains a and b, classes x and y, ten images each; 28 of the 40 to train on."""
    root = tmp_path_factory.mktemp("tree")
    generator = np.random.default_rng(0)
    for place in ("a/x", "a/y", "b/x", "b/y"):
        (root / place).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{number}.png")
    return root


@pytest.fixture
def settings(tree: Path) -> Callable[..., list[str]]:
    """Make the command line of a training of seconds; what is given overrides it."""

    def make(*given: str) -> list[str]:
        small = {
            "--data": str(tree), "--weights": "none", "--image-size": "8", "--workers": "0", "--loader-workers": "0",
            "--epochs": "1", "--batch-size": "8", "--knn": "3", "--rank": "2", "--format": "lora",
            "--tracking-uri": "none",
        }  # fmt: skip
        for name in given[::2]:
            small.pop(name, None)
        return ["train", *(part for pair in small.items() for part in pair), *given]

    return make
