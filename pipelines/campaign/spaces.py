"""Search spaces: files that list alternatives, and the points in them.

A point is ``{setting: value}``. A setting of only some alternatives is conditional: points of the other alternatives
do not have it.
"""

import itertools
import math
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform

import tune_spaces
from metalora.config import (
    Config,
    current_names,
    current_sections,
    from_dict,
    nearest_setting,
    now_options,
    old_names,
    put,
    searchable_settings,
    setting_sections,
    to_dict,
)
from metalora.errors import UserError, given_as
from metalora.methods import check_methods
from metalora.missing import is_missing, no_such_path
from metalora.places import expanded
from metalora.registry import nearest
from pipelines.campaign.trials import Point
from pipelines.run.trust import is_trusted, trust


@dataclass(frozen=True)
class Space:
    """The content of a space's file.

    Attributes:
        name: Name of the space, or path of its file.
        alternatives: Setting -> a value, or one of Ray Tune's domains (``tune.choice``, ``tune.loguniform``, ...).
        settings: The settings that all trials share.
        campaign: The settings of the search.
    """

    name: str
    alternatives: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    campaign: Mapping[str, Any]

    @property
    def searched(self) -> set[str]:
        """The settings that a point gives."""
        return {name for alternative in self.alternatives for name in alternative}

    def describe(self) -> list[dict[str, str]]:
        """Return the alternatives as text; they must stay the same when a campaign is resumed."""
        return [{name: _text(value) for name, value in sorted(one.items())} for one in self.alternatives]


def load_space(name: str) -> Space:
    """Load a space of this project by name, or a user's by the path of its file.

    Raises:
        UserError: the space or file does not exist, the file fails, its ``SPACE``, ``SETTINGS`` or ``CAMPAIGN`` is
            missing or wrong, or a setting does not exist or cannot be searched.
    """
    own = space_names()
    file = Path(str(tune_spaces.__file__)).with_name(f"{name}.py") if name in own else expanded(name)
    if not (name in own or _is_file(name)):
        if is_missing(name) and (name.endswith(".py") or os.sep in name):
            raise UserError(f"{no_such_path(name, 'space')}{given_as('space')}")
        known = [*own, *sorted(path.name for path in Path().glob("*.py"))]
        raise UserError(
            f"unknown space {name!r}{nearest(name, known)} "
            f"(spaces: {', '.join(space_names())}; or the path of a .py file with a list SPACE)"
        )
    if name not in own:
        _refuse_shadow(file)
    try:
        content = runpy.run_path(str(file))
    except Exception as error:  # whatever a user's file does
        raise UserError(f"space {name!r} does not run: {type(error).__name__}: {error}") from None
    alternatives = content.get("SPACE")
    if not isinstance(alternatives, list) or not alternatives or not all(isinstance(a, dict) for a in alternatives):
        raise UserError(f"space {name!r} must define SPACE, a list of {{setting: value or tune.choice(...)}}")
    for part in ("SETTINGS", "CAMPAIGN"):
        if not isinstance(content.get(part, {}), dict):
            raise UserError(f"space {name!r}: {part} must be a dict, got {type(content[part]).__name__}")
    try:
        campaign = current_names("campaign", content.get("CAMPAIGN", {}))
    except UserError as error:
        raise UserError(f"space {name!r}: {error}") from None
    space = Space(name, tuple(alternatives), content.get("SETTINGS", {}), campaign)
    try:
        check_methods(from_dict(sections_of(space.settings)))
        for setting in sorted(space.searched):
            _check_searched(setting, space)
    except UserError as error:
        raise UserError(f"space {space.name!r}: {error}") from None
    return space


def _refuse_shadow(file: Path) -> None:
    """Refuse a file with the name of a module: workers look for modules where a command is started, and would find it.

    Raises:
        UserError: there is such a module.
    """
    found = PathFinder.find_spec(file.stem, [p for p in sys.path if p and Path(p).resolve() != file.resolve().parent])
    if file.stem in sys.stdlib_module_names or found is not None:
        raise UserError(f"space {str(file)!r} has the name of a Python module, {file.stem}, which would no longer be "
                        "found: rename the file")  # fmt: skip


def trust_space(name: str) -> None:
    """Remember that the user has named a space's file, so that it may be run."""
    if _is_file(name):
        trust("space", expanded(name).read_bytes())


def is_trusted_space(name: str) -> bool:
    """Tell whether a space belongs to this project, or is a file that the user has named and not changed since."""
    return not _is_file(name) or is_trusted("space", expanded(name).read_bytes())


def _is_file(name: str) -> bool:
    return name.endswith(".py") and expanded(name).is_file()


def space_names() -> list[str]:
    """Return the names of this project's spaces."""
    return sorted(path.stem for path in Path(str(tune_spaces.__file__)).parent.glob("[a-z]*.py"))


def section_of(name: str) -> str:
    """Return the section of a setting, or of an option of the method that a setting names: ``format.branches``.

    Raises:
        UserError: the setting is unknown.
    """
    known = setting_sections() | old_names()
    if name.partition(".")[0] not in known:
        raise UserError(f"unknown setting {name!r}{nearest_setting(name, known)}")
    return known[name.partition(".")[0]]


def put_all(values: dict[str, dict[str, Any]], settings: Mapping[str, Any]) -> None:
    """Set settings in the sections of `Config`, in place; options of methods come after the methods.

    Raises:
        UserError: a setting is unknown.
    """
    for name in sorted(settings, key=lambda name: name.count(".")):
        section = section_of(name)
        put(section, values.setdefault(section, {}), name, settings[name])


def sections_of(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort settings into the sections of `Config`.

    Raises:
        UserError: a setting is unknown.
    """
    sections: dict[str, dict[str, Any]] = {}
    put_all(sections, settings)
    return current_sections(sections, asked=True)


def grid(space: Space, points: int) -> list[Point]:
    """Return all combinations; a continuous range gives so many evenly spaced values (in its logarithm, if that)."""
    every = [
        dict(zip(alternative, values, strict=True))
        for alternative in space.alternatives
        for values in itertools.product(*(levels(value, points) for value in alternative.values()))
    ]
    return list({str(point): point for point in every}.values())


def number_of_points(space: Space) -> int | None:
    """Return how many points a space has, those of two alternatives counted twice; None if it has continuous ranges."""
    total = 0
    for alternative in space.alternatives:
        domains = [value for value in alternative.values() if isinstance(value, Domain)]
        if not all(isinstance(one, Categorical | Integer) for one in domains):
            return None
        total += math.prod(len(one) if isinstance(one, Categorical) else one.upper - one.lower for one in domains)
    return total


def sample(space: Space, random_seed: int) -> Iterator[Point]:
    """Yield random points without end, the alternatives in turn."""
    state = np.random.RandomState(random_seed)  # what Ray Tune's domains draw from
    for alternative in itertools.cycle(space.alternatives):
        yield {
            name: plain_value(value.sample(random_state=state)) if isinstance(value, Domain) else value
            for name, value in alternative.items()
        }


def check_values(space: Space, config: Config) -> None:
    """Check every value of every setting of a space, with the other settings of a campaign.

    Raises:
        UserError: a value is not accepted.
    """
    try:
        for alternative in space.alternatives:
            first = {name: levels(value, 2)[0] for name, value in alternative.items()}
            for name, value in alternative.items():
                for level in levels(value, 2):
                    values = to_dict(config)
                    put_all(values, {**first, name: level})
                    check_methods(from_dict(current_sections(values, asked=True)))
    except UserError as error:
        raise UserError(f"space {space.name!r}: {error}") from None


def _base(name: str) -> str:
    """Return the setting, or for an option that of its method: ``format`` for ``format.branches``."""
    return now_options().get(name, name).partition(".")[0]


def _check_searched(name: str, space: Space) -> None:
    """Check that a setting may be searched: it may differ between trials, and is set nowhere else in the space.

    Raises:
        UserError: the setting cannot be searched; the message says why.
    """
    searchable = searchable_settings()
    section_of(name)
    if name in ("seed", "random_seed") or name in space.settings:
        reason = "it stands in SETTINGS too" if name in space.settings else "each point is run with --repeats"
        raise UserError(f"{name} cannot be searched, {reason}")
    if _base(name) not in searchable and name not in old_names():
        sections = sorted({setting_sections()[one] for one in searchable})
        raise UserError(
            f"{name} is the same for a whole campaign (searchable are settings of {', '.join(sections)}): put it into "
            "SETTINGS"
        )


def levels(value: Any, points: int) -> list[Any]:
    """Return the values that a grid takes."""
    if not isinstance(value, Domain):
        return [value]
    if isinstance(value, Categorical):
        return list(value.categories)
    if not isinstance(value, Float | Integer) or not math.isfinite(value.lower + value.upper):
        raise UserError(f"{_text(value)} has no grid and no ends: wanted choice, uniform, loguniform, randint, ...")
    logarithmic = isinstance(value.sampler, LogUniform)
    ends = (value.lower, value.upper if isinstance(value, Float) else value.upper - 1)
    found = np.geomspace(*ends, points) if logarithmic else np.linspace(*ends, points)
    if isinstance(value, Integer):
        return sorted({round(level) for level in found.tolist()})
    return [plain_value(level) for level in found]


def plain_value(value: Any) -> Any:
    """Return a value as Python's own kind, with the digits that matter: 0.00316, not 0.0031622776601683794."""
    value = value.item() if isinstance(value, np.generic) else value
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _text(value: Any) -> str:
    if isinstance(value, Categorical):
        return f"choice({', '.join(map(str, value.categories))})"
    if isinstance(value, Float | Integer):
        return f"{type(value.sampler).__name__.strip('_').lower()}({value.lower:g}, {value.upper:g})"
    return str(value)
