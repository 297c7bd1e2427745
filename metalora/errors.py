"""The one exception a user's mistake becomes, and errors in one line."""

LONGEST = 4000


class UserError(ValueError):
    """Something the user can mend: bad setting, bad data, a resource that is not there.

    The message is one line that names the thing, what was met and what is accepted. The command line
    prints it without a traceback and exits with status 2. Line breaks in it, as names from files may have, become
    spaces; of a longer one, `LONGEST` characters are kept.
    """

    def __init__(self, message: str) -> None:
        message = " ".join(message.splitlines())
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]}...")


def one_line(error: BaseException, longest: int = 300) -> str:
    """Return what an error says as one line; its kind if it says nothing, or a mere key that was not found."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= longest else f"{text[:longest]}..."
