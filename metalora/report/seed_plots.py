"""Plots of seeds by their principal components."""

from pathlib import Path

import numpy as np

from metalora.report.drawing import drawn
from metalora.report.plots import Array, sample_evenly, scatter


def plot_pca(
    components: Array,
    explained: tuple[float, float],
    domains: list[str],
    labels: list[str],
    path: Path,
    seed: int = 0,
    limit: int = 1500,
) -> None:
    """Draw seeds by their first two principal components twice into one PNG, coloured by task and by label.

    Args:
        components: (N, 2), the two components of each seed.
        explained: The components' shares of the variance.
        domains: Name of each seed's task, N.
        labels: Name of each seed's label, N.
        path: The PNG file.
        seed: Random seed of the choice of points.
        limit: Largest number of points, taken evenly from the domains.
    """
    rows = sample_evenly(domains, limit, seed)
    with drawn(path, 13, 7, dpi=110) as figure:
        for axes, names, kind in zip(figure.subplots(1, 2), (domains, labels), ("task", "label"), strict=True):
            scatter(axes, components[rows], np.array(names)[rows], kind)
            axes.set_xlabel(f"first component ({explained[0]:.0%} of the variance)")
            axes.xaxis.set_label_position("top")  # the names are below
            axes.set_ylabel(f"second component ({explained[1]:.0%})")
        figure.suptitle(f"Principal components of the generated seeds, {len(rows)} of {len(components)} samples")
