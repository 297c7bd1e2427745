"""The one exception a user's mistake becomes."""


class UserError(ValueError):
    """Something the user can mend: bad setting, bad data, a resource that is not there.

    The message is one line that names the thing, what was met and what is accepted. The command line
    prints it without a traceback and exits with status 2.
    """
