"""The pictures of a campaign's report, and what is said where there is nothing to draw."""

from pathlib import Path

from metalora.report.campaign import LEAST_POINTS, Campaign
from metalora.report.campaign_plots import plot_cost, plot_importances, plot_ranks
from metalora.report.importance import MIN_POINTS, importances
from metalora.report.parallel_plot import plot_parallel

COST = """## Score and cost

![Score against trained parameters and step time](cost.png)

Finished points. {bars} Step times are those of this campaign's machines, with as many trials at a time as ran."""
RANKS = """## Rank

![Score by rank](ranks.png)

The line joins the first point of each rank, pale marks are the others. {bars} A rank is not the same size in all \
formats: tr of rank R has R x R channels."""
BARS = """Bars are standard deviations over repeats; of a single training, the binomial standard error over the \
images, where their number is known."""
IMPORTANCE = """## Settings

![Importance of the settings](importance.png)

fANOVA of Optuna, on {points} finished points: the share of the variance that each setting explains by itself; luck \
between trials counts as well. Where a setting does not apply to a format, it counts as at its usual value."""
PARALLEL = """## Points

![The points as lines over their settings](parallel.png)"""


def picture_sections(campaign: Campaign, folder: Path) -> list[str]:
    """Draw the pictures that say something into a folder, and return the report's sections on them.

    A last section names the pictures that were left out, with what they take.

    Args:
        campaign: The campaign.
        folder: The folder for the pictures; it exists.
    """
    there = len(campaign.ranked)
    drawn = {
        COST: plot_cost(campaign, folder / "cost.png"),
        RANKS: plot_ranks(campaign, folder / "ranks.png"),
        IMPORTANCE: plot_importances(importances(campaign.ranked), folder / "importance.png"),
        PARALLEL: plot_parallel(campaign, folder / "parallel.png"),
    }
    takes = {
        COST: f"score and cost (takes {LEAST_POINTS} finished points of different cost, there are {there})",
        RANKS: "score by rank (takes a format with two ranks)",
        IMPORTANCE: f"importance of the settings (takes {MIN_POINTS} finished points that differ, there are {there})",
        PARALLEL: f"points as lines over their settings (takes {LEAST_POINTS} finished points, there are {there})",
    }
    sections = [caption.format(points=there, bars=BARS) for caption, done in drawn.items() if done]
    missing = [takes[caption] for caption, done in drawn.items() if not done]
    return [*sections, f"Pictures left out: {'; '.join(missing)}."] if missing else sections
