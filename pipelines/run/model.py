"""The model of a finished run: from its folder, or from MLflow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metalora.adapters.files import DESCRIPTION
from metalora.build import build_networks
from metalora.config import Config
from metalora.errors import UserError
from metalora.models.backbones import Backbone
from metalora.models.model import MetaLoRAModel
from metalora.models.persist import load
from metalora.places import absolute
from metalora.tracking.store import download_model
from metalora.train.results import ADAPTER
from pipelines.run.folder import CONFIG, find_run, read_settings


def fetch(run: str, output: str, tracking_uri: str, scratch: Path) -> Path:
    """Return a folder with ``adapter`` and ``config.yaml``, downloaded if the run is a model in MLflow.

    Args:
        run: Name or folder of a run, or MLflow's ``models:/NAME@champion`` or ``runs:/ID/model``.
        output: Folder of all runs.
        tracking_uri: MLflow tracking URI.
        scratch: Folder to download to.

    Raises:
        UserError: there is no such run, or it is not finished.
    """
    if run.startswith(("models:/", "runs:/")):
        return download_model(run, tracking_uri, scratch)
    return finished_run(run, Path(output))


def finished_run(run: str, output: Path) -> Path:
    """Return the folder of a finished run.

    Args:
        run: Its name or folder.
        output: Folder of all runs.

    Raises:
        UserError: there is no such run, or it is not finished.
    """
    folder = find_run(run, output)
    if not (folder / ADAPTER).is_dir():
        raise UserError(f"run {run!r} is not finished: {folder} has no folder {ADAPTER!r}")
    return folder


def find_adapter(name: str, output: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Find the adapter that a training is to begin with, and the settings of its run.

    Args:
        name: Name or folder of a run, or an adapter's folder.
        output: Folder of all runs.

    Returns:
        The adapter's folder, and the sections backbone, adapter and mapping; these are empty if it is not in a run's
        folder.

    Raises:
        UserError: there is no such run or adapter, or the run is not finished.
    """
    adapter = absolute(name)
    if not (adapter / DESCRIPTION).is_file():
        adapter = finished_run(name, output) / ADAPTER
    if not (adapter.parent / CONFIG).is_file():
        return adapter, {}
    settings = read_settings(adapter.parent)
    found = {section: dict(settings.get(section) or {}) for section in ("backbone", "adapter", "mapping")}
    found["adapter"].pop("init_adapter", None)
    return adapter, found


def load_model(config: Config, folder: Path, say: Callable[[str], None]) -> tuple[MetaLoRAModel, Backbone]:
    """Load the model of a run's folder.

    Args:
        config: The training's settings.
        folder: Folder with the adapter and, if they are to be loaded from there, the networks' tensors.
        say: Told what takes long.

    Returns:
        The model, in eval mode on the CPU, and its backbone without adapters.

    Raises:
        UserError: backbone and adapter do not fit together.
    """
    brought = {part: folder / f"{part}.safetensors" for part in ("backbone", "extractor")}
    found = {part: file for part, file in brought.items() if file.is_file()}
    backbone, extractor = build_networks(config, say, found)
    return load(backbone, folder / ADAPTER, extractor), backbone
