"""The command ``metalora``."""

import errno
import importlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from metalora.errors import LONGEST, UserError, one_line
from metalora.reading import short
from metalora.redact import redact
from metalora.registry import nearest
from metalora.version import __version__
from pipelines.surroundings import handle, usable_surroundings
from pipelines.verbosity import as_before

COMMANDS = {
    "train": "fine-tune a backbone for several visual domains at once",
    "tune": "search a space of settings; every trial is a training",
    "evaluate": "score a trained adapter, on its data or on others",
    "predict": "predict the labels of images with a trained adapter",
    "download": "fetch the weights that a training will need, for machines without internet",
    "data": "look at a data set before a training: metalora data inspect DATA",
    "report": "report a campaign's results in tables and plots",
    "reproduce": "compare all methods as the paper does, each tuned alike",
    "seeds": "measure whether a run's seeds tell tasks and classes apart",
    "methods": "list every method that settings can name: equation, source, options",
    "bench": "measure how fast the parts are on this machine",
}
# why a path that was given cannot be used
UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EROFS)
USAGE = f"""usage: metalora COMMAND [OPTIONS]

commands:
{chr(10).join(f"  {name:10}{what}" for name, what in COMMANDS.items())}

metalora COMMAND --help lists a command's options, metalora --version tells the version.
All commands take --quiet (only results, warnings and errors) and --log-level LEVEL.
metalora train --dry-run and metalora tune --dry-run read the data, check everything, and stop."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error that the user can mend exits with status 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    run(lambda: dispatch(arguments, COMMANDS, USAGE, "command", "pipelines.commands"))


def run(command: Callable[[], None]) -> None:
    """Run a function; a `UserError` becomes one line and exit status 2, an interrupt 130, a SIGTERM 143."""
    terminated: list[int] = []

    def terminate(number: int, frame: object) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    before = handle(signal.SIGTERM, terminate)
    try:
        with usable_surroundings(), as_before():
            command()
    except UserError as error:
        said = redact(one_line(error, LONGEST))
        print(f"metalora: error: {said}", *getattr(error, "__notes__", ())[-1:], sep="\n", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None or error.errno not in UNUSABLE:
            raise
        print(f"metalora: error: {short(str(error.filename))}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        said = "terminated" if terminated else "interrupted"
        print(f"metalora: {said}", *getattr(error, "__notes__", ())[-1:], sep="\n", file=sys.stderr)
        raise SystemExit(128 + (signal.SIGTERM if terminated else signal.SIGINT)) from None
    finally:
        handle(signal.SIGTERM, before)


def dispatch(arguments: Sequence[str], commands: Mapping[str, str], usage: str, kind: str, package: str) -> None:
    """Run the command that the first argument names, by calling ``main`` of the module with that name.

    Args:
        arguments: The command line.
        commands: The commands by name.
        usage: Text to print if no command is named.
        kind: Name of the kind of commands in error messages, in the singular.
        package: Package of the modules.

    Raises:
        UserError: the command is unknown.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return
    if arguments[0] in ("-V", "--version"):
        print(f"metalora {__version__}")
        return
    name = arguments[0]
    if name not in commands:
        raise UserError(f"unknown {kind} {name!r}{nearest(name, commands)} ({kind}s: {', '.join(commands)})")
    importlib.import_module(f"{package}.{name}").main(arguments[1:])


if __name__ == "__main__":
    main()
