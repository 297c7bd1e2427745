"""Start the tracked run of a folder, and report what was not tracked."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from metalora.errors import UserError, one_line
from metalora.files import atomic_file
from metalora.tracking.tracker import Tracker
from pipelines.run.folder import METRICS, tracked_id, write_run_note
from pipelines.run.log import read_metrics


def start_tracking(
    tracker: Tracker,
    folder: Path,
    tracking_uri: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    settings: Mapping[str, str],
) -> str | None:
    """Start or continue the tracked run of a folder; the folder is written only after that.

    Args:
        tracker: The tracker, not yet started.
        folder: Folder of the run or campaign.
        tracking_uri: Tracking URI of the run.
        params: Parameters of the tracked run.
        tags: Tags of the tracked run.
        settings: Content of the files to write into the folder, by file.

    Returns:
        The id of the tracked run; None if it is not tracked.

    Raises:
        UserError: the tracker cannot be used, or the folder cannot be written.
    """
    before = list(read_metrics(folder / METRICS))
    run_id = tracker.start(params, tags, tracked_id(folder, tracking_uri), before)
    try:
        for name, text in settings.items():
            with atomic_file(folder / name) as file:
                file.write_text(text, encoding="utf-8")
        write_run_note(folder, run_id, tracking_uri)
    except OSError as error:
        tracker.finish("FAILED")
        raise UserError(f"the run's folder {folder} cannot be written: {error.strerror}") from None
    return run_id


def tell_untracked(command: str, console: Console) -> Callable[[Exception], None]:
    """Return a function that tells the user that something was not tracked.

    Args:
        command: Command that sends the rest; the message names it unless the tracker has refused for good.
        console: The console to print to.
    """

    def tell(error: Exception) -> None:
        again = "" if isinstance(error, UserError) else f"; 'metalora {command}' sends it again"
        console.print(f"tracking: {one_line(error)}{again}", style="yellow", soft_wrap=True)

    return tell
