"""The command ``metalora``."""

import sys
from collections.abc import Callable, Sequence

from metalora.errors import UserError
from metalora.registry import nearest

USAGE = """usage: metalora COMMAND [OPTIONS]

commands:
  train    fine-tune a backbone for several visual domains at once

metalora COMMAND --help lists a command's options."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with status 2 on what the user can mend."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    run(lambda: _dispatch(arguments))


def run(command: Callable[[], None]) -> None:
    """Run a command; a `UserError` becomes one line and status 2, an interrupt status 130."""
    try:
        command()
    except UserError as error:
        print(f"metalora: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("metalora: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _dispatch(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
    elif arguments[0] == "train":
        from pipelines.train import main as train

        train(arguments[1:])
    else:
        raise UserError(f"unknown command {arguments[0]!r}{nearest(arguments[0], ['train'])} (commands: train)")


if __name__ == "__main__":
    main()
