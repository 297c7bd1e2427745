"""Read settings of files that older versions wrote, under today's names."""

from collections.abc import Mapping
from typing import Any

from metalora.errors import UserError
from metalora.registry import KINDS, Choice

# section, or what else files hold -> {name in files of older code: today's name}
RENAMED: dict[str, dict[str, str]] = {
    "train": {"seed": "random_seed"},
    "campaign": {"seeds": "repeats"},
    "table": {"tuning_seeds": "tuning_repeats", "fresh_seeds": "fresh_repeats"},
    "trial": {"seed": "random_seed"},
}

EPISODIC = ("episodic",)
# section -> {setting of older code: (setting that names a method today, its default, methods that have the option, it)}
OPTIONS: dict[str, dict[str, tuple[str, str, tuple[str, ...], str]]] = {
    "adapter": {"branches": ("format", "tr", ("multi_lora",), "branches")},
    "train": {
        "weight_decay": ("optimizer", "adamw", ("adamw",), "weight_decay"),
        "label_smoothing": ("objective", "classification", ("classification", *EPISODIC), "label_smoothing"),
        "episode_classes": ("objective", "classification", EPISODIC, "classes"),
        "episode_images": ("objective", "classification", EPISODIC, "images"),
        "episode_temperature": ("objective", "classification", EPISODIC, "temperature"),
        "episode_tasks": ("objective", "classification", EPISODIC, "tasks"),
    },
}


def old_names() -> dict[str, str]:
    """Return the section of each setting that older versions had under another name, by the old name."""
    return {old: section for table in (RENAMED, OPTIONS) for section in OPTIONS for old in table.get(section, ())}


def now_options() -> dict[str, str]:
    """Return today's names of older settings that are now options of a method, ``format.branches``, by the old name."""
    return {old: f"{setting}.{option}" for names in OPTIONS.values() for old, (setting, _, _, option) in names.items()}


def current_names(section: str, settings: Mapping[str, Any], asked: bool = False) -> dict[str, Any]:
    """Return the settings of one section under today's names; files of older versions have other names.

    An old setting that is now an option of a method becomes that option, if the method is chosen.

    Args:
        section: The section.
        settings: Its settings.
        asked: Whether the user asks for them now; else they are what older code has recorded, with all settings that it
            had, those of other methods too.

    Raises:
        UserError: a setting is given under both its old and its new name, or the user asks for one whose method is not
            chosen.
    """
    renamed, options = RENAMED.get(section, {}), OPTIONS.get(section, {})
    for old in renamed.keys() & settings.keys():
        if renamed[old] in settings:
            raise UserError(f"{section}.{old} is now called {section}.{renamed[old]}: give it under that name only")
    current = {renamed.get(name, name): value for name, value in settings.items() if name not in options}
    for old in options.keys() & settings.keys():
        setting, default, methods, option = options[old]
        value = settings[old]
        try:
            choice = Choice.parse(current.get(setting, default))
        except ValueError:  # it is told where the choice itself is read
            continue
        if choice.name not in methods:
            if asked and value != KINDS[setting].full(methods[0])[option]:
                raise UserError(f"{section}.{old} is now {setting}.{option}, an option of {' and '.join(methods)}, "
                                f"and {setting} is {choice.name!r}")  # fmt: skip
            continue
        if old == "episode_tasks" and value == "in_turn":
            current["callbacks"] = [*current.get("callbacks", ()), "in_turn"]
            value = "one"
        if option in choice.options:
            raise UserError(f"{section}.{old} is now called {section}.{setting}.{option}: give it once only")
        current[setting] = Choice(choice.name, {**choice.options, option: value}).plain()
    return current


def current_sections(values: Mapping[str, Any], asked: bool = False) -> dict[str, Any]:
    """Return ``{section: {setting: value}}`` under today's names; see `current_names`."""
    return {
        section: current_names(section, settings, asked) if isinstance(settings, Mapping) else settings
        for section, settings in values.items()
    }
