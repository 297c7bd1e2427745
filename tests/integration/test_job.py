"""``ray job submit`` against a running cluster with token authentication."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.helpers import SMALL, importable, knn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """A head on this machine: the address of its jobs, and the environment with its token."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    environment = {**importable(), **token, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    dashboard = free_port()
    # By default the agent has a fixed port; where another Ray on this machine has taken it, no job is run. And in the
    # default folder the address of this cluster would stay behind: Ray Train's helpers in others would wait for it.
    folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    options = [
        *(f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"),
        *("--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder.name}"),
    ]
    head = subprocess.Popen(
        [*RAY, "start", "--head", "--block", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 90
    while not _listens(dashboard):
        assert head.poll() is None, "ray start ended"
        assert time.monotonic() < end, "the dashboard does not answer"
        time.sleep(0.5)
    yield f"http://127.0.0.1:{dashboard}", environment
    family = psutil.Process(head.pid).children(recursive=True)
    head.send_signal(signal.SIGTERM)
    for left in psutil.wait_procs([psutil.Process(head.pid), *family], timeout=10)[1]:
        left.kill()
    head.wait()
    folder.cleanup()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _submit(address: str, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RAY, "job", "submit", "--address", address, "--", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=420,
        check=False,
    )


def test_a_job_trains_on_the_cluster(cluster: tuple[str, dict[str, str]], tree: Path, tmp_path: Path) -> None:
    address, environment = cluster
    done = _submit(
        address, environment, sys.executable, "-m", "pipelines.cli", "train", "--ray-address", "auto", "--workers", "2",
        "--data", str(tree), *SMALL, "--output", str(tmp_path), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db",
        "--run-name", "job",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert set(knn(tmp_path / "job")["adapted"]["by_domain"]) == {"paper", "slate"}


def test_too_many_workers_for_the_cluster_are_refused(cluster: tuple[str, dict[str, str]], tree: Path) -> None:
    address, environment = cluster
    done = _submit(
        address, environment, sys.executable, "-m", "pipelines.cli", "train", "--ray-address", "auto", "--workers", "3",
        "--data", str(tree), *SMALL, "--tracking-uri", "none",
    )  # fmt: skip
    assert done.returncode != 0
    assert "3 workers with 1 CPUs each need 3 CPUs" in done.stdout


def test_without_the_token_nothing_is_run(cluster: tuple[str, dict[str, str]]) -> None:
    address, environment = cluster
    done = _submit(address, {**environment, "RAY_AUTH_TOKEN": secrets.token_hex(16)}, "true")
    assert done.returncode != 0
    assert "succeeded" not in done.stdout
