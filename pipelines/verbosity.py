"""How much a command tells: ``--quiet`` and ``--log-level``, which every command has."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LEVELS = ("debug", "info", "warning", "error")
LOGGERS = ("metalora", "pipelines", "ray", "mlflow")


@dataclass
class _Asked:
    quiet: bool = False
    level: int | None = None


_asked = _Asked()


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--quiet`` and ``--log-level``."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "-q", "--quiet", action="store_true", help="print results, warnings and errors only: no progress"
    )
    group.add_argument(
        "--log-level", metavar=f"{{{','.join(LEVELS)}}}", choices=LEVELS,
        help="least level of the log messages of metalora, Ray and MLflow, workers included (default: warning; of Ray "
        "and MLflow: error)",
    )  # fmt: skip


def listen(options: argparse.Namespace) -> None:
    """Do as a parsed command line asks, from now on; see `as_before`."""
    _asked.quiet = options.quiet
    _asked.level = None if options.log_level is None else logging.getLevelNamesMapping()[options.log_level.upper()]
    log_from(_asked.level)


def is_quiet() -> bool:
    """Tell whether the user asked for ``--quiet``."""
    return _asked.quiet


def log_level() -> int | None:
    """Return the level that the user asked for; None: each library keeps its own."""
    return _asked.level


def log_from(level: int | None) -> None:
    """Write log messages from a level on to the standard error stream, in this process; None changes nothing."""
    if level is None:
        return
    for name in LOGGERS:
        logging.getLogger(name).setLevel(level)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")


@contextmanager
def as_before() -> Iterator[None]:
    """Undo, when the block ends, what `listen` did in it."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    handlers = list(logging.getLogger().handlers)
    try:
        yield
    finally:
        if _asked.level is not None:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            for handler in set(logging.getLogger().handlers) - set(handlers):
                logging.getLogger().removeHandler(handler)
        _asked.quiet, _asked.level = False, None
