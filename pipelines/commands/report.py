"""``metalora report``: the results of a campaign, read from its folder alone."""

from collections.abc import Sequence

from metalora.places import absolute
from pipelines.campaign.report import read_campaign, show, write_report
from pipelines.command_line import add_output, add_run, make_parser, parse
from pipelines.run.console import terminal
from pipelines.run.folder import CAMPAIGN, check_links, find_run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora report`` with command-line arguments.

    Raises:
        UserError: the campaign does not exist or cannot be read.
    """
    parser = make_parser(
        "metalora report",
        "Report a campaign's results in tables and plots.",
        "RUN [--output DIR]",
        {"--campaign": "metalora report RUN", "--output-folder": "--output"},
    )
    add_run(parser, "campaign")
    add_output(parser)
    options = parse(parser, arguments)
    folder = find_run(options.run, absolute(options.output), CAMPAIGN, "campaign")
    check_links(folder)
    campaign = read_campaign(folder)
    report = write_report(folder, campaign)
    console = terminal()
    show(console, campaign)
    console.print(f"report    {report / 'report.md'}", soft_wrap=True)
