"""The files of a run's folder, and what MLflow is given of them: the same for a lone training and for a trial."""

import getpass
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from metalora.adapters.formats import build_format
from metalora.config import Config
from metalora.evaluate.seeds import read_seeds
from metalora.models.backbones import Backbone
from metalora.report.plots import plot_tsne
from metalora.tracking import Tracker, flatten
from metalora.train.evaluation import ADAPTER, KNN, SEEDS

CONFIG, METRICS, RUN = "config.yaml", "metrics.jsonl", "run.json"


def run_params(config: Config) -> dict[str, Any]:
    """Return the settings of a training as its run's parameters, without those that its format does not have."""
    params = flatten(config)
    if build_format(config.adapter.format, config.adapter.branches).seed != "generated":
        params = {name: value for name, value in params.items() if not name.startswith("mapping.")}
    if config.adapter.format != "multi_lora":
        params.pop("adapter.branches")
    return params


def run_tags(kind: str, command: str) -> dict[str, str]:
    """Return the tags that every run of a kind (train, campaign, trial) carries."""
    tags = {"metalora.kind": kind, "mlflow.source.name": f"metalora {command}", "mlflow.user": getpass.getuser()}
    commit = _git_commit()
    if commit:
        tags["mlflow.source.git.commit"] = commit
    if "RAY_JOB_ID" in os.environ:
        tags["metalora.ray_job"] = os.environ["RAY_JOB_ID"]
    return tags


def write_run_note(folder: Path, run_id: str | None, tracking_uri: str) -> None:
    """Note which tracked run a folder is."""
    note = {"run_id": run_id, "tracking_uri": tracking_uri}
    (folder / RUN).write_text(json.dumps(note) + "\n", encoding="utf-8")


def read_run_note(folder: Path, tracking_uri: str) -> str | None:
    """Return the id of the tracked run that a folder is, if it is one of that store."""
    if not (folder / RUN).is_file():
        return None
    note: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    return note.get("run_id") if note.get("tracking_uri") == tracking_uri else None


def copy_results(results: Path, folder: Path) -> None:
    """Copy a finished training's results from its last checkpoint into its folder, and draw the seeds."""
    shutil.copytree(results / ADAPTER, folder / ADAPTER, dirs_exist_ok=True)
    shutil.copy(results / KNN, folder / KNN)
    if (results / SEEDS).is_file():
        (folder / SEEDS).parent.mkdir(exist_ok=True)
        shutil.copy(results / SEEDS, folder / SEEDS)
        seeds = read_seeds(folder / SEEDS)
        plot_tsne(seeds.vectors, seeds.domains, seeds.labels, (folder / SEEDS).with_name("tsne.png"))


def upload_results(tracker: Tracker, folder: Path) -> None:
    """Give the tracker what a finished training's folder holds."""
    for path in (folder / CONFIG, folder / KNN, folder / ADAPTER, (folder / SEEDS).parent):
        if path.exists():
            tracker.artifact(path)


def upload_model(
    tracker: Tracker, folder: Path, backbone: Backbone, extractor: Backbone | None, name: str = ""
) -> None:
    """Give the tracker a run's adapter as a model with all it needs; under a name, as that one's champion."""
    files = {"adapter": folder / ADAPTER, "config": folder / CONFIG}
    networks = {"backbone": backbone, "extractor": extractor}
    tracker.model(files, {part: network for part, network in networks.items() if network is not None}, name)


def _git_commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
