"""The interface of trackers, and a tracker that tracks nothing.

Only the process that drives the training writes to a run. A server that cannot be reached does not stop the
training: missed metrics wait in memory, and in the run's ``metrics.jsonl`` for a later ``--resume``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from metalora.config import Config, spelled_out, to_dict
from metalora.redact import redact_settings
from metalora.registry import KINDS

Record = tuple[int, float, Mapping[str, float]]  # step, Unix time in seconds, values


class Tracker(Protocol):
    """Records the metrics, files and model of a run."""

    def start(
        self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None, missed: Iterable[Record]
    ) -> str | None:
        """Begin or continue a run, and return its id."""

    def metrics(self, record: Record) -> None:
        """Record metrics of the run."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or all files of a folder."""

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""

    def model(self, files: Mapping[str, Path], networks: Mapping[str, Any], name: str = "") -> None:
        """Keep an adapter, with the networks it needs, as a model that can be loaded and served."""

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""

    def where(self) -> str:
        """Return how to open the run."""


class NullTracker:
    """A tracker that tracks nothing."""

    def start(
        self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None, missed: Iterable[Record]
    ) -> None:
        """Do nothing."""

    def metrics(self, record: Record) -> None:
        """Do nothing."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Do nothing."""

    def tag(self, name: str, value: str) -> None:
        """Do nothing."""

    def model(self, files: Mapping[str, Path], networks: Mapping[str, Any], name: str = "") -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""

    def where(self) -> str:
        """Return that nothing was tracked."""
        return "not tracked (tracking_uri = none)"


def flatten(config: Config) -> dict[str, Any]:
    """Return ``{"section.setting": value}`` without secrets in URIs; methods by name, with all their options."""
    flat: dict[str, Any] = {}
    for section, settings in redact_settings(spelled_out(to_dict(config))).items():
        for name, value in settings.items():
            several = value if isinstance(value, list) else [value]
            if name not in KINDS:
                flat[f"{section}.{name}"] = value
                continue
            flat[f"{section}.{name}"] = ", ".join(one["name"] for one in several)
            for one in several:
                path = f"{section}.{name}.{one['name']}" if isinstance(value, list) else f"{section}.{name}"
                flat |= {f"{path}.{option}": it for option, it in one.items() if option != "name"}
    return flat
