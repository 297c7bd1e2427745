"""The exception for a user's mistakes, and errors in one line."""

LONGEST = 4000


class UserError(ValueError):
    """An error that the user can mend: a bad setting, bad data, a missing resource.

    The message is one line that names the thing, what was met and what is accepted. The command line prints it without
    a traceback and exits with status 2. Line breaks, which names from files may have, become spaces. A message is cut
    after `LONGEST` characters.
    """

    def __init__(self, message: str) -> None:
        message = " ".join(message.splitlines())
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]}...")


def one_line(error: BaseException, longest: int = 300) -> str:
    """Return an error's message as one line, with the error's class if the message is empty or only a missing key."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= longest else f"{text[:longest]}..."


def option(setting: str) -> str:
    """Return the command-line option of a setting, or of an option of a method: ``--batch-size`` for ``batch_size``."""
    return f"--{setting.replace('_', '-')}"


def given_as(*settings: str) -> str:
    """Return the options of settings, with which an error message about them ends: ``" (--batch-size, --workers)"``."""
    return f" ({', '.join(map(option, settings))})"
