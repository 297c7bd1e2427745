"""Starting and ending a tracked run."""

from rich.console import Console

from metalora.errors import UserError, one_line


def tell_untracked(error: Exception, command: str, console: Console) -> None:
    """Tell that the tracker has not everything, and which command sends the rest, unless it was refused for good."""
    again = "" if isinstance(error, UserError) else f"; 'metalora {command}' sends it again"
    console.print(f"tracking: {one_line(error)}{again}", style="yellow", soft_wrap=True)
