"""Running the command and reading what it leaves."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SMALL = [
    "--weights", "none", "--batch-size", "12", "--epochs", "3", "--rank", "2", "--knn", "1", "3", "--lr", "0.003",
    "--warmup-steps", "2", "--evaluation-batch-size", "16",
]  # fmt: skip


def importable() -> dict[str, str]:
    """Return the environment, with this checkout on Python's path, and without what MLflow and we have left in it."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "TORCHINDUCTOR_"))}
    return {**clean, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def metalora(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``metalora`` in a folder of its own, as a user does."""
    # Into files: a pipe would stay open for as long as any process that Ray has started.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            cwd=folder,
            env={**importable(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            timeout=420,
            check=False,
        )
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, output.read(), errors.read())


def relative(path: Path, folder: Path) -> str:
    """Return a path as a user who stands in a folder types it."""
    return os.path.relpath(path, folder)


def train_small(folder: Path, tree: Path, name: str, *arguments: str) -> Path:
    """Train on the small tree; return the run's folder."""
    done = metalora(folder, "train", "--data", relative(tree, folder), *SMALL, "--run-name", name, *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "runs" / name


def knn(run: Path) -> dict[str, Any]:
    """Return a run's k-NN report."""
    report: dict[str, Any] = json.loads((run / "knn.json").read_text())
    return report


def series(run: Path, name: str) -> dict[int, float]:
    """Return a metric's values by step, from ``metrics.jsonl``."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["metrics"][name] for record in records if name in record["metrics"]}
