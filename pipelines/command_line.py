"""The command line: its parser, whose errors are one line, and the arguments that several commands have."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from metalora.config import now_options, setting_sections, settings_meant
from metalora.errors import UserError, option
from metalora.reading import short
from metalora.registry import nearest
from pipelines.verbosity import add_verbosity, listen

ALIKE = 0.7  # from here on a word counts as a misspelling of an option; the dashes make short words alike


class _Parser(argparse.ArgumentParser):
    gone: Mapping[str, str]

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def make_parser(
    prog: str,
    description: str,
    usage: str | None = "[--config FILE] [--SETTING VALUE ...]",
    gone: Mapping[str, str] | None = None,
) -> argparse.ArgumentParser:
    """Make a parser whose errors are `UserError`s.

    Args:
        prog: Name of the command.
        description: What the command does.
        usage: Text after the command in its usage line; None: argparse lists all options.
        gone: Today's spelling of options of older versions, by the old spelling.
    """
    parser = _Parser(prog=prog, usage=usage and f"{prog} {usage}", description=description, allow_abbrev=False)
    parser.gone = gone or {}
    add_verbosity(parser)
    return parser


def add_run(parser: argparse.ArgumentParser, kind: str, more: str = "") -> None:
    """Add the argument RUN, which names an earlier run.

    Args:
        parser: Parser of the command.
        kind: Kind of run: run or campaign.
        more: Help text on what else is accepted.
    """
    parser.add_argument("run", metavar="RUN", help=f"{kind}: its name in --output, or its folder{more}")


def add_resume(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add the option ``--resume RUN``; see `add_run`."""
    parser.add_argument("--resume", metavar="RUN", help=f"continue {kind}: its name in --output, or its folder")


def add_dry_run(parser: argparse.ArgumentParser, done: str) -> None:
    """Add the option ``--dry-run``; ``done`` is what would be done with the settings: trained, tried."""
    parser.add_argument(
        "--dry-run", action="store_true",
        help=f"read the data, build and check everything, print what would be {done}, and stop",
    )  # fmt: skip


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--output`` to a command that has no settings."""
    parser.add_argument("--output", metavar="DIR", default="runs", help="folder of the runs (default: runs)")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line.

    Raises:
        UserError: an option is unknown (the message gives the nearest one), belongs to older versions, or lacks its
            value.
    """
    arguments = [_dashed(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    gone = {option(old): option(new) for old, new in now_options().items()} | getattr(parser, "gone", {})
    for name in (argument.partition("=")[0] for argument in arguments):
        if name in gone:
            raise UserError(f"option {name} is now written {gone[name]}")
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        options = [
            name for action in parser._actions if action.help != argparse.SUPPRESS for name in action.option_strings
        ]
        met = unknown[0].partition("=")[0]
        if not met.startswith("-"):
            raise UserError(f"unexpected argument {short(met)} ({parser.prog} --help lists all)")
        setting = met.removeprefix("--").replace("-", "_").partition(".")[0]
        if setting in setting_sections() and option(setting) not in options:
            raise UserError(f"option {met} is a setting of trainings, which {parser.prog} does not read "
                            f"({parser.prog} --help lists those that it does)")  # fmt: skip
        raise UserError(f"unknown option {met!r}{nearest_option(met, options)} ({parser.prog} --help lists all)")
    listen(known)
    return known


def _dashed(argument: str) -> str:
    """Return an argument with an option's name as we write it: ``--batch-size`` for ``--batch_size``."""
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument


def nearest_option(met: str, options: Sequence[str]) -> str:
    """Return ``", did you mean '--x'?"``, also for other libraries' names of a setting; empty if nothing is near."""
    word = met.removeprefix("--").replace("-", "_")
    meant = [repr(option(one)) for one in settings_meant(word) if option(one) in options]
    return f", did you mean {' or '.join(meant)}?" if meant else nearest(met, options, ALIKE)
