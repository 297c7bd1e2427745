"""The results of the backbone without adapters, which the finished trials of a campaign have all measured."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from metalora.errors import UserError
from metalora.reading import read_json
from metalora.train.results import KNN
from pipelines.campaign.trials import Images

Share = Annotated[float, Field(ge=0, le=1)]
Votes = dict[str, dict[str, Share]]


class _Accuracies(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    overall: Votes
    by_domain: dict[str, Votes]
    queries: dict[str, Images]
    linear: NotRequired[Share]


class _Report(TypedDict):
    """The part of ``knn.json`` that is read here."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    original: _Accuracies


@dataclass(frozen=True)
class Original:
    """The backbone without adapters on the test split.

    Attributes:
        value: The metric; None if it is not known.
        images: Domain -> number of test images.
    """

    value: float | None = None
    images: Mapping[str, int] = field(default_factory=dict)


def read_original(folders: Iterable[Path], metric: str) -> Original:
    """Read the original's results from the first trial that has them.

    A damaged ``knn.json`` is passed over: the trials of a campaign all measured the same.

    Args:
        folders: Folders of finished trials.
        metric: Name of the metric, such as ``test/knn10`` or ``test/knn5_weighted/sketch``.
    """
    for folder in folders:
        if not (folder / KNN).is_file():
            continue
        try:
            report: _Report = read_json(folder / KNN, f"report {folder / KNN}", _Report)
        except UserError:
            continue
        found = report["original"]
        return Original(_value(found, metric), found["queries"])
    return Original()


def _value(found: _Accuracies, metric: str) -> float | None:
    if metric == "test/linear":
        return found.get("linear")
    parts = re.fullmatch(r"test/knn(\d+)(_weighted)?(?:/(.+))?", metric)
    if parts is None:
        return None
    k, weighted, domain = parts.groups()
    votes = found["by_domain"].get(domain, {}) if domain else found["overall"]
    return votes.get("weighted" if weighted else "uniform", {}).get(k)
