"""Running the command and reading what it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SMALL = [
    "--weights", "none", "--batch-size", "12", "--epochs", "3", "--rank", "2", "--knn", "1", "3", "--lr", "0.003",
    "--warmup-steps", "2", "--evaluation-batch-size", "16",
]  # fmt: skip


def metalora(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``metalora`` in a folder of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        timeout=420,
        check=False,
    )


def train_small(folder: Path, tree: Path, name: str, *arguments: str) -> Path:
    """Train on the small tree; return the run's folder."""
    done = metalora(folder, "train", "--data", str(tree), *SMALL, "--run-name", name, *arguments)
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
