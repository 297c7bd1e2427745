"""What all tests share: a cache of their own, and small data."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.cli import main
from pipelines.surroundings import keep_compiled

DOMAINS, CLASSES, IMAGES = ("paper", "slate"), ("circle", "cross", "square"), 14


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests out of the user's cache; one folder for the session, so that weights are trained once."""
    folder = tmp_path_factory.mktemp("cache")
    keep_compiled()  # but what torch has compiled is the user's
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALORA_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DomainBed-style tree: shapes, dark on light and light on dark."""
    root = tmp_path_factory.mktemp("shapes")
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :28]
    for domain in DOMAINS:
        for name in CLASSES:
            (root / domain / name).mkdir(parents=True)
            for number in range(IMAGES):
                y, x = generator.uniform(10, 18, 2)
                radius = np.hypot(rows - y, columns - x)
                shape = {
                    "circle": radius < 7,
                    "cross": (abs(rows - y) < 2) | (abs(columns - x) < 2),
                    "square": np.maximum(abs(rows - y), abs(columns - x)) < 6,
                }[name]
                ink = np.where(shape, 40, 210) if domain == "paper" else np.where(shape, 220, 60)
                pixels = np.repeat((ink + generator.normal(0, 12, ink.shape)).clip(0, 255)[..., None], 3, -1)
                Image.fromarray(pixels.astype(np.uint8)).save(root / domain / name / f"{number:02d}.png")
    return root


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT be heard, here and in programs that are started: a shell's background jobs inherit that it is not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], str]:
    """Run a command, in this process, that must fail with one line before it starts Ray; return the line."""

    def run(arguments: list[str]) -> str:
        monkeypatch.setattr("ray.init", None)
        with pytest.raises(SystemExit) as end:
            main(arguments)
        captured = capsys.readouterr()
        assert end.value.code == 2
        assert captured.err.startswith("metalora: error: ")
        assert captured.err.count("\n") == 1
        return captured.err.removeprefix("metalora: error: ").rstrip()

    return run


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors and networks are so small that threads only wait for each other, in commands that are run too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def steady() -> None:
    """Let every test start from the same generator state."""
    torch.manual_seed(0)
