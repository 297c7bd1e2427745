"""Plots of seeds, drawn without a display and without pyplot's global state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metalora.errors import UserError
from metalora.report.drawing import drawn, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

LEGEND_ENTRIES = 20


def plot_tsne(
    seeds: Array, domains: list[str], labels: list[str], path: Path, seed: int = 0, limit: int = 1500
) -> None:
    """Draw a t-SNE map of generated seeds twice into one PNG, coloured by task and by label.

    Args:
        seeds: The generated seeds, (N, S).
        domains: Name of each seed's task, N.
        labels: Name of each seed's label, N.
        path: The PNG file.
        seed: Random seed of t-SNE and of the choice of points.
        limit: Largest number of points, taken evenly from the domains.

    Raises:
        UserError: there are fewer than two seeds, or some are not finite.
    """
    if len(seeds) < 2:
        raise UserError(f"a t-SNE map needs at least 2 seeds, got {len(seeds)}")
    if not np.isfinite(seeds).all():
        raise UserError("a t-SNE map needs finite seeds, and some hold NaN or infinity")
    rows = sample_evenly(domains, limit, seed)
    points = _tsne(seeds[rows], seed)
    with drawn(path, 13, 7, dpi=110) as figure:
        for axes, names, kind in zip(figure.subplots(1, 2), (domains, labels), ("task", "label"), strict=True):
            scatter(axes, points, np.array(names)[rows], kind)
        figure.suptitle(f"t-SNE of the generated seeds, {len(rows)} of {len(seeds)} samples")


def sample_evenly(domains: list[str], limit: int, seed: int) -> Array:
    """Return at most ``limit`` row numbers; small domains are complete before large ones get more."""
    order = np.random.default_rng(seed).permutation(len(domains))
    rank = np.empty(len(domains), dtype=int)  # of a row among its domain's, in random order
    for domain in set(domains):
        members = order[np.array(domains)[order] == domain]
        rank[members] = np.arange(len(members))
    return np.sort(order[np.argsort(rank[order], kind="stable")[:limit]])


def _tsne(seeds: Array, seed: int) -> Array:
    """Return (n, 2): t-SNE of the standardised seeds' first 50 principal components."""
    from sklearn.manifold import TSNE

    centred = seeds.astype(np.float64) - seeds.mean(axis=0, dtype=np.float64)
    spread = centred.std(axis=0)
    standard = centred / np.where(spread > 1e-12, spread, 1)
    left, scale, _ = np.linalg.svd(standard, full_matrices=False)
    components = (left * scale)[:, :50]
    # scikit-learn's own start divides by the first component's spread, which is 0 for equal seeds.
    start = np.zeros((len(seeds), 2), dtype=np.float32)
    start[:, : components.shape[1]] = components[:, :2]
    start *= 1e-4 / max(start[:, 0].std(), 1e-12)
    perplexity = min(30, max(1, (len(seeds) - 1) / 3))
    points: Array = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(components)
    return points


def scatter(axes: "Axes", points: Array, names: Array, kind: str) -> None:
    """Draw points (n, 2) in the colours of their n names, with a legend if there are few names."""
    import matplotlib

    distinct = sorted(set(names.tolist()))
    listed = len(distinct) <= LEGEND_ENTRIES
    if listed:
        palette = matplotlib.colormaps["tab10" if len(distinct) <= 10 else "tab20"]
        colours = [palette(number) for number in range(len(distinct))]
    else:
        colours = list(matplotlib.colormaps["hsv"](np.linspace(0, 1, len(distinct), endpoint=False)))
    marks = []
    for name, colour in zip(distinct, colours, strict=True):
        mine = points[names == name]
        marks.append(axes.scatter(mine[:, 0], mine[:, 1], s=10, color=colour, linewidths=0, alpha=0.8))
    axes.set_title(f"by {kind}" if listed else f"by {kind} ({len(distinct)}, not listed)")
    axes.set_xticks([])
    axes.set_yticks([])
    if listed:
        entries = [shown(name) for name in distinct]
        longest = max(map(len, entries))
        legend = axes.legend(
            marks,
            [str(number) for number in range(len(marks))],  # a name that begins with _ would be left out
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            ncols=5 if longest <= 12 else 3 if longest <= 24 else 2,
            markerscale=2,
            frameon=False,
        )
        for text, entry in zip(legend.get_texts(), entries, strict=True):
            text.set_text(entry)
