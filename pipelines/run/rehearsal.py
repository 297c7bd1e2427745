"""Show what a training would be, for ``--dry-run``."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from metalora.config import Config, to_dict
from metalora.redact import redact_settings
from metalora.registry import Choice, listed
from metalora.tracking.build import tracking_address

ENDED = "dry run: nothing was trained, written or tracked"


def show_training(console: Console, config: Config, trained: tuple[int, int], steps: tuple[int, int]) -> None:
    """Print the settings that are not the defaults, the trained parameters and the steps.

    Args:
        console: The console to print to.
        config: All settings.
        trained: Number of trained and of all parameters.
        steps: Optimizer steps of an epoch, and of the whole training.
    """
    settings = list(changed_settings(config))
    console.print(f"settings  {', '.join(settings) or 'the defaults'}", soft_wrap=True)
    console.print(f"trained   {trained[0]:,} of {trained[1]:,} parameters ({trained[0] / trained[1]:.2%})")
    console.print(f"steps     {steps[0]:,} per epoch, {steps[1]:,} in all, of {config.data.batch_size:,} images")


def changed_settings(config: Config) -> Iterator[str]:
    """Yield the settings that differ from their defaults, as ``NAME VALUE``, without passwords."""
    before, now = to_dict(Config()), redact_settings(to_dict(config))
    before["tracking"]["tracking_uri"] = tracking_address("default")
    for section, settings in now.items():
        for name, value in settings.items():
            if value != before[section][name] and name != "run_name":
                yield f"{name} {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "name" not in value:
        return " ".join(f"{name}={one}" for name, one in value.items())
    if isinstance(value, dict):
        return str(Choice.parse(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(_shown(one) for one in listed(value))
    return str(value)
