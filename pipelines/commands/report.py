"""``metalora report``: what a campaign has found, read from its folder alone."""

from collections.abc import Sequence

from metalora.places import absolute
from metalora.report.campaign_tables import (
    best,
    standing,
)
from pipelines.campaign.report import _write, leaderboard_table, read_campaign
from pipelines.options import make_parser
from pipelines.run.console import terminal
from pipelines.run.folder import CAMPAIGN, check_links, find_run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora report`` with command-line arguments.

    Raises:
        UserError: no such campaign, or one that cannot be read.
    """
    parser = make_parser("metalora report", "Say in tables and pictures what a campaign has found.")
    parser.usage = None
    parser.add_argument("--campaign", metavar="NAME", required=True, help="the campaign's name")
    parser.add_argument("--output-folder", metavar="DIR", default="runs", help="where it is (default: runs)")
    options = parser.parse_args(arguments)
    folder = find_run(options.campaign, absolute(options.output_folder), CAMPAIGN, "campaign")
    check_links(folder)
    campaign = read_campaign(folder)
    report = _write(campaign, folder / "report")
    console = terminal()
    console.print(leaderboard_table(campaign))
    console.print(f"{standing(campaign)}\n{best(campaign).replace('**', '')}")
    console.print(f"report    {report / 'report.md'}", soft_wrap=True)
