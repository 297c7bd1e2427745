"""Tables for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from metalora.report.measures import measures

VOTES = {"uniform": "uniform vote", "weighted": "weighted vote"}
HOLDOUT = {"seen": "held out", "unseen": "held out, own gallery"}


def accuracy_table(original: Mapping[str, Any], adapted: Mapping[str, Any], format: str) -> Table:
    """Return k-NN accuracies in %, original against adapted: one block per vote, overall first, then each task.

    Held-out domains follow, if any: first with the train split of the other domains as gallery, then with their own.

    Args:
        original: `KnnResult.as_dict()` of the unadapted backbone, and ``holdout`` as in ``knn.json``, if there is one.
        adapted: The same for the adapted backbone, on the same queries.
        format: The adapter's format, the heading of its columns.
    """
    numbers = sorted(original["overall"]["uniform"], key=int)
    table = Table(title="k-NN accuracy in %", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    table.add_column("images", justify="right")
    for k in numbers:
        for heading in ("original", format, "gain"):
            table.add_column(f"K = {k}\n{heading}", justify="right", no_wrap=True)
    parts = [("overall", original, adapted)]
    for gallery, title in HOLDOUT.items() if "holdout" in original else ():
        parts.append((title, original["holdout"][gallery], adapted["holdout"][gallery]))
    for vote, title in VOTES.items():
        table.add_row(Text(title, style="italic"))
        for name, before, after in parts:
            _add_rows(table, name, before, after, vote, numbers)
        table.add_section()
    return table


def measures_table(report: Mapping[str, Any]) -> Table:
    """Return the accuracies in % over all test images by every measure: k-NN, a linear classifier, the trained one.

    ``±`` is the standard error of the gain, as `Measure.error` gives it.

    Args:
        report: The content of ``knn.json``.
    """
    title = f"accuracy in % on all {report['queries']:,} test images"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("measure")
    for heading in ("original", str(report["format"]), "gain", "±"):
        table.add_column(heading, justify="right", no_wrap=True)
    for measure in measures(report):
        before, after = measure.original, measure.adapted
        gain = [Text(""), Text("")]
        if before is not None and after is not None:
            gain = [_gain(100 * (after - before)), Text(f"{100 * measure.error(report['queries']):.1f}")]
        cells = (Text("" if value is None else f"{100 * value:.1f}") for value in (before, after))
        table.add_row(measure.name, *cells, *gain)
    return table


def _add_rows(
    table: Table, name: str, before: Mapping[str, Any], after: Mapping[str, Any], vote: str, numbers: list[str]
) -> None:
    images = before["queries"]
    overall = _cells(before["overall"][vote], after["overall"][vote], numbers)
    table.add_row(name, str(sum(images.values())), *overall, style="bold")
    for domain, count in images.items():
        cells = _cells(before["by_domain"][domain][vote], after["by_domain"][domain][vote], numbers)
        table.add_row(Text(domain), str(count), *cells)


def _cells(before: Mapping[str, float], after: Mapping[str, float], numbers: list[str]) -> list[Text]:
    cells = []
    for k in numbers:
        gain = 100 * (after[k] - before[k])
        cells += [Text(f"{100 * before[k]:.1f}"), Text(f"{100 * after[k]:.1f}"), _gain(gain)]
    return cells


def _gain(gain: float) -> Text:
    text = f"{gain:+.1f}"
    if text in ("+0.0", "-0.0"):
        return Text("0.0")
    return Text(text, style="green" if gain > 0 else "red")
