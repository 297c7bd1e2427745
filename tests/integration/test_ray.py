"""``metalora train`` on Ray Train: two workers on this machine."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.helpers import SMALL, importable, knn, metalora, relative, series, train_small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = ["--epochs", "12", "--checkpoint-every", "3", "--validate-every", "4", "--tracking-uri", "none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tree: Path) -> Path:
    return train_small(folder, tree, "undisturbed", "--workers", "2", *LONG)


def test_two_workers_are_one_process(undisturbed: Path, folder: Path, tree: Path) -> None:
    """The global batch and its order do not depend on the workers, so only summation order differs.

    In float32 that difference grows with the steps; ``test_ddp`` compares losses and weights in float64.
    """
    alone = train_small(folder, tree, "alone", "--workers", "0", *LONG)
    two, one = series(undisturbed, "train/loss"), series(alone, "train/loss")
    assert two.keys() == one.keys()
    assert list(two.values())[:4] == pytest.approx(list(one.values())[:4], rel=1e-4)


def test_killed_worker_ends_in_the_same_table(undisturbed: Path, folder: Path, tree: Path) -> None:
    arguments = ["train", "--data", relative(tree, folder), *SMALL, "--run-name", "killed", "--workers", "2", *LONG]
    run = folder / "runs" / "killed"
    process = _start_and_wait(folder, run, *arguments)
    os.kill(_worker_of(process), signal.SIGKILL)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-4000:]
    assert knn(run) == knn(undisturbed)
    assert series(run, "train/loss") == series(undisturbed, "train/loss")


@pytest.mark.usefixtures("interruptible")
def test_ended_and_killed_drivers_are_resumed(undisturbed: Path, folder: Path, tree: Path) -> None:
    arguments = ["train", "--data", relative(tree, folder), *SMALL, "--run-name", "again", "--workers", "2", *LONG]
    run = folder / "runs" / "again"
    for number, said in ((signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")):
        process = _start_and_wait(folder, run, *arguments)
        process.send_signal(number)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 128 + number, output[-4000:]
        assert output.endswith(f"metalora: {said}\nto continue: metalora train --resume again\n")
        arguments = ["train", "--resume", "again"]
    process = _start_and_wait(folder, run, *arguments)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    for left in psutil.wait_procs(family, timeout=20)[1]:
        left.kill()
    done = metalora(folder, "train", "--resume", "again")
    assert done.returncode == 0, done.stderr[-3000:]
    assert knn(run) == knn(undisturbed)


def test_more_workers_than_cpus_is_said_at_once(folder: Path, tree: Path) -> None:
    started = time.monotonic()
    done = metalora(
        folder, "train", "--data", relative(tree, folder), *SMALL, "--workers", "600", "--batch-size", "600"
    )
    assert done.returncode == 2
    assert "600 workers" in done.stderr
    assert f"has {os.cpu_count()}" in done.stderr
    assert time.monotonic() - started < 30


def test_a_worker_finds_what_was_compiled_before(folder: Path) -> None:
    """What says where is read when torch's compiler is imported, which a worker has not done when it begins."""
    code = """
import os
import sys
from ray import train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def work(arguments):
    import pipelines.backend.worker as worker
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    worker.keep_compiled()
    import torch._functorch.config as functorch
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    found = functorch.autograd_cache_allow_custom_autograd_functions, cache_dir()
    open(arguments["file"], "w").write(repr(found))

TorchTrainer(work, train_loop_config={"file": sys.argv[1]}, scaling_config=ScalingConfig(num_workers=1),
             run_config=RunConfig(storage_path=sys.argv[2])).fit()
"""
    environment = {**importable(), "METALORA_CACHE": str(folder / "cache")}
    where = [str(folder / "compiled.txt"), str(folder / "storage")]
    done = subprocess.run(
        [sys.executable, "-c", code, *where], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    allowed, place = ast.literal_eval(Path(where[0]).read_text())
    assert allowed is True
    assert Path(place).parent == folder / "cache" / "compiled"


def test_error_in_the_workers_is_one_line(folder: Path, tree: Path) -> None:
    done = metalora(folder, "train", "--data", relative(tree, folder), *SMALL, "--run-name", "nan", "--workers", "2",
                    "--lr", "1e30", "--clip-norm", "none", *LONG)  # fmt: skip
    assert done.returncode == 2
    assert "is not finite at step" in next(line for line in done.stderr.splitlines() if "metalora: error" in line)
    assert "Traceback" not in done.stderr


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=folder,
        env=importable(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _start_and_wait(folder: Path, run: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a training; return when it has written a checkpoint that was not there before."""
    before = _checkpoints(run)
    process = _start(folder, *arguments)
    _wait_for(lambda: _checkpoints(run) - before, process)
    return process


def _checkpoints(run: Path) -> set[str]:
    return {path.name for path in run.glob("checkpoint_????????")}


def _wait_for(condition, process: subprocess.Popen[str], seconds: float = 240) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended too early: " + (process.stdout.read() if process.stdout else "")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def _worker_of(process: subprocess.Popen[str]) -> int:
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [child.pid for child in family if "RayTrainWorker" in " ".join(child.cmdline())]
    assert len(workers) == 2, [child.cmdline() for child in family]
    return max(workers)
