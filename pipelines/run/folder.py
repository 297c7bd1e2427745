"""The files of a run's folder, and those that MLflow gets; the same for a single training and for a trial."""

import getpass
import itertools
import json
import os
import subprocess
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from metalora.adapters.formats import FORMATS
from metalora.config import Config, check_file, place_settings
from metalora.errors import UserError, one_line
from metalora.files import atomic_file
from metalora.missing import is_missing, no_such_path
from metalora.models.backbones.base import Backbone
from metalora.places import absolute, moved
from metalora.reading import check_form, config_name, read_json, read_yaml, short
from metalora.redact import redact_uri
from metalora.registry import nearest
from metalora.tracking.tracker import Tracker, flatten
from metalora.train.results import ADAPTER, KNN, SEEDS
from pipelines.run.console import only_tells

CAMPAIGN, TRIALS, TRIAL = "campaign.yaml", "trials", "trial.json"
CONFIG, METRICS, RUN, ERROR = "config.yaml", "metrics.jsonl", "run.json", "error.txt"
PLAN = "table.yaml"
KINDS = {"run": CONFIG, "campaign": CAMPAIGN, "table": PLAN}  # the file that only such a folder has
REPLACED = {  # of a run's folder, or a trial's, when results are written
    *(CONFIG, METRICS, RUN, ERROR, CAMPAIGN, TRIAL, PLAN, KNN, ADAPTER, "report"),
    *("predictions", "seeds", SEEDS, "seeds/tsne.png", "seeds/pca.png", "seeds/analysis.json"),
}
Sections = dict[str, dict[str, Any]]


def run_params(config: Config) -> dict[str, Any]:
    """Return the settings of a training as MLflow parameters, without settings that its format does not use."""
    params = flatten(config)
    if FORMATS.make(config.adapter.format).seed != "generated":
        params = {name: value for name, value in params.items() if not name.startswith("mapping.")}
    return params


def run_tags(kind: str, command: str) -> dict[str, str]:
    """Return the tags of every tracked run of a kind (train, campaign, trial)."""
    tags = {"metalora.kind": kind, "mlflow.source.name": f"metalora {command}", "mlflow.user": _user()}
    commit = _git_commit()
    if commit:
        tags["mlflow.source.git.commit"] = commit
    if "RAY_JOB_ID" in os.environ:
        tags["metalora.ray_job"] = os.environ["RAY_JOB_ID"]
    return tags


def write_run_note(folder: Path, run_id: str | None, tracking_uri: str) -> None:
    """Write ``run.json``: a folder's tracked run, and its path, by which `read_settings` notices that it was moved."""
    note = {"run_id": run_id, "tracking_uri": redact_uri(tracking_uri), "folder": str(folder)}
    with atomic_file(folder / RUN) as file:
        file.write_text(json.dumps(note) + "\n", encoding="utf-8")


def read_run_note(folder: Path) -> tuple[str | None, str]:
    """Read the id of a folder's tracked run, and its tracking URI, which is empty if it is not tracked.

    Raises:
        UserError: ``run.json`` cannot be read.
    """
    note = _note(folder)
    uri = moved(note.get("tracking_uri") or "", Path(note.get("folder") or folder), folder)
    return note.get("run_id"), uri


def tracked_id(folder: Path, tracking_uri: str) -> str | None:
    """Return the id of a folder's tracked run in a store; None if it has none there, or is a copy of a folder."""
    run_id, uri = read_run_note(folder)
    original = Path(_note(folder).get("folder") or folder)
    copied = original != folder and read_run_note(original)[0] == run_id
    return run_id if uri == redact_uri(tracking_uri) and not copied else None


def find_run(name: str, output: Path, file: str = CONFIG, kind: str = "run") -> Path:
    """Return the folder of an earlier run or campaign.

    Args:
        name: Name of the run, or path of its folder.
        output: Folder of all runs.
        file: File that such a folder must have.
        kind: Kind of the run in error messages.

    Raises:
        UserError: there is no such run, or it is of another kind; the message lists those in ``output``.
    """
    places = (absolute(output / name), absolute(name))
    for folder in places:
        if (folder / file).is_file():
            return folder
    for folder, (other, its) in itertools.product(places, KINDS.items()):
        if (folder / its).is_file():
            trials = f": its trials are runs, {folder / TRIALS}/NAME" if (its, file) == (CAMPAIGN, CONFIG) else ""
            raise UserError(f"{name!r} is a {other}, and a {kind} is wanted{trials}")
    if os.sep in name:  # a path, and no name
        inside = places[0] if places[0].parent.is_dir() else places[1]
        raise UserError(no_such_path(inside, kind) if is_missing(inside) else f"{name!r} is no {kind}: no {file} in it")
    names = sorted(path.parent.name for path in output.glob(f"*/{file}")) if output.is_dir() else []
    raise UserError(f"no {kind} {name!r} in {output}{nearest(name, names)} (there: {', '.join(names) or 'none'})")


def check_links(folder: Path, replaced: Collection[str] = REPLACED) -> None:
    """Check that no link within a run's folder leads writing elsewhere.

    Args:
        folder: The run's folder.
        replaced: Files that are replaced when they are written, so that they may be links; paths in the folder of a run
            or trial.

    Raises:
        UserError: there is such a link.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and _in_run(path, folder) not in replaced:
                raise UserError(
                    f"{path} is a link to {short(str(path.readlink()))}, and what is written there would be written "
                    "through it: put a plain file or folder in its place, or remove it"
                )
        # what is replaced as a whole may hold links
        folders[:] = [name for name in folders if _in_run(Path(place, name), folder) not in (ADAPTER, "report")]


def _in_run(path: Path, folder: Path) -> str:
    """Return where in its run, or in its trial, a file of a run's folder is."""
    parts = path.relative_to(folder).parts
    return "/".join(parts[2:] if parts[0] == TRIALS and len(parts) > 2 else parts)


def writable_file(path: str, option: str) -> Path:
    """Return the absolute path of a file that a command will write, after checking that it can.

    Raises:
        UserError: the file cannot be written.
    """
    file = absolute(path)
    try:
        file.open("a", encoding="utf-8").close()
    except OSError as error:
        raise UserError(f"{option} {path!r} cannot be written: {error.strerror}") from None
    return file


def read_settings(folder: Path, file: str = CONFIG) -> dict[str, Any]:
    """Read the settings of an earlier run or campaign; their paths follow the folder if it was moved.

    Raises:
        UserError: the file cannot be read.
    """
    content = read_yaml(folder / file)
    old = Path(_note(folder).get("folder") or folder)
    what = config_name(folder / file)
    sections: Sections = check_form(content if file == CONFIG else content.get("config", {}), Sections, what)
    sections = check_file(sections, what)
    for section, name in place_settings():
        value = sections.get(section, {}).get(name)
        if isinstance(value, str):
            sections[section][name] = moved(value, old, folder)
    return sections if file == CONFIG else {**content, "config": sections}


def continued(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run with the present place and name of its folder."""
    changed = {"cluster": {"output": str(folder.parent)}, "tracking": {"run_name": folder.name}}
    return {**settings, **{section: {**(settings.get(section) or {}), **new} for section, new in changed.items()}}


class _Note(TypedDict, total=False):
    """The form of ``run.json``."""

    run_id: str | None
    tracking_uri: str | None
    folder: str


def _note(folder: Path) -> _Note:
    """Return the content of ``run.json``; empty if the file does not exist."""
    if not (folder / RUN).exists():
        return {}
    note: _Note = read_json(folder / RUN, f"run {folder / RUN}", _Note)
    return note


def read_report(folder: Path) -> dict[str, Any]:
    """Read the accuracies of a finished training.

    Raises:
        UserError: the report cannot be read.
    """
    report: dict[str, Any] = read_json(folder / KNN, f"report {folder / KNN}")
    return report


def only_shows(what: str, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Report an error in the block, which draws or tabulates results, and continue: the results must not be lost."""
    return only_tells(lambda error: say(f"{what} could not be made: {one_line(error)}"))


def last_line(error: str) -> str:
    """Return the line of an error's text that says what happened."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "unknown"


def upload_model(
    tracker: Tracker, folder: Path, backbone: Backbone, extractor: Backbone | None, name: str = ""
) -> None:
    """Upload a run's adapter to the tracker as a complete model; with a name, register it as that name's champion."""
    files = {"adapter": folder / ADAPTER, "config": folder / CONFIG}
    networks = {"backbone": backbone, "extractor": extractor}
    tracker.model(files, {part: network for part, network in networks.items() if network is not None}, name)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number and no name
        return str(os.getuid())


def _git_commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
