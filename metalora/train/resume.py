"""Resume a training from a checkpoint: which settings may have changed, and what is read from it."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, NonNegativeInt, Strict
from torch import Tensor
from typing_extensions import TypedDict

from metalora.config import SECTIONS, Config, current_sections, facts_of, spelled_out, to_dict
from metalora.data import Table
from metalora.errors import UserError
from metalora.models.model import MetaLoRAModel
from metalora.places import movable
from metalora.reading import check_form, gate, short
from metalora.registry import Choice
from metalora.train.checkpoint import PREFIX, read_state
from metalora.train.selection import Selected, Selection


class State(TypedDict):
    """The state of a training in a checkpoint; it has no learning rates, as settings and step determine them."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)  # type: ignore[misc]

    step: Annotated[NonNegativeInt, Strict()]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    generators: list[dict[str, Any]]
    settings: dict[str, Any]
    data: str
    networks: NotRequired[list[str | None]]
    selection: NotRequired[Selected | None]
    callbacks: NotRequired[dict[str, dict[str, Any]]]


class _Weights(TypedDict):
    """The form of an `AdapterLearner`'s state, as far as its tensors are concerned."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)  # type: ignore[misc]

    model: dict[str, Tensor]


def read_resumable(folder: Path, config: Config, table: Table, model: MetaLoRAModel) -> State:
    """Read the state of a checkpoint, for a training with these settings, data and networks to resume.

    Raises:
        UserError: the checkpoint cannot be read, or the training cannot be resumed; the message names all differences.
    """
    content = read_state(folder)
    with gate(f"checkpoint {folder}"):
        state: State = check_form(content, State, f"checkpoint {folder}")
        named = re.fullmatch(rf"{PREFIX}(\d{{8}})", folder.name)
        if named and int(named[1]) != state["step"]:
            raise UserError(f"its folder is named for another step than its own, {state['step']}")
        changes = _changes(state, config, table, model)
        if not changes:
            model.check_adapter_state(state["model"], exact=True)
            selected = state.get("selection")
            if selected is not None and "state" in selected:
                best: _Weights = check_form(selected["state"], _Weights, "best weights")
                model.check_adapter_state(best["model"], exact=True)
    if changes:
        raise UserError(f"{folder.parent.name} cannot be resumed, its settings changed: {'; '.join(changes)}")
    if extended(state, config) and _stopped(state, config):
        raise UserError(
            f"{folder.parent.name} ended early, after {config.train.patience} validations without a better one: "
            "raise --patience to train it longer"
        )
    return state


def _stopped(state: State, config: Config) -> bool:
    selection = Selection(config)
    selection.selected = state.get("selection")
    return selection.over


def _changes(state: State, config: Config, table: Table, model: MetaLoRAModel) -> list[str]:
    """Return texts on the differences between a checkpoint's training and this one."""
    before, now = _before(state), comparable(config)
    longer = _extending()
    before |= _raised(before, now)
    changes = differences(*({n: v for n, v in one.items() if n not in longer} for one in (before, now)))
    shorter = differences(*({n: one[n] for n in longer} for one in (before, now)))
    changes += [f"{text} (it can only be raised)" for text in shorter]
    if state["data"] != table.fingerprint:
        changes.append("the data differ")
    if state.get("networks", networks(model)) != networks(model):
        changes.append("the tensors of backbone or extractor differ")
    return changes


def extended(state: State, config: Config) -> bool:
    """Tell whether a training is to be longer than the one that wrote a checkpoint."""
    return bool(_raised(_before(state), comparable(config)))


def _before(state: State) -> dict[str, Any]:
    """Return the settings, flat, of the training that wrote a checkpoint."""
    defaults = comparable(Config())  # what older code did not know had its default
    return {**defaults, **{name: value for name, value in _current(state["settings"]).items() if name in defaults}}


def _raised(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the present values of settings that make a training longer than it was; None is no limit."""
    return {name: now[name] for name in _extending() if _limit(now[name]) > _limit(before[name])}


def _extending() -> list[str]:
    """Return the settings that may be raised, so that a training becomes longer."""
    return [f"train.{field.name}" for field in dataclasses.fields(SECTIONS["train"]) if facts_of(field).extends]


def _limit(value: float | None) -> float:
    return math.inf if value is None else value


def _current(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings, ``section.name``, under today's names and with all options of their methods."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        section, _, setting = name.partition(".")
        sections.setdefault(section, {})[setting] = value
    return _flat(spelled_out(current_sections(sections)))


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{name}": movable(value) for section, one in sections.items() for name, value in one.items()}


def comparable(config: Config) -> dict[str, Any]:
    """Return the settings, flat, that must not change when a run is resumed: all but how it is computed."""
    plain = to_dict(config)
    held = {
        section: {
            field.name: plain[section][field.name]
            for field in dataclasses.fields(getattr(config, section))
            if not facts_of(field).free
        }
        for section in ("backbone", "adapter", "mapping", "data", "train")
    }
    return _flat(spelled_out(held))


def networks(model: MetaLoRAModel) -> list[str | None]:
    """Return the hashes of backbone and extractor; None for an extractor that is the backbone itself."""
    return [model.backbone_identity["hash"], model.extractor_identity and model.extractor_identity["hash"]]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return one text for each setting that differs."""
    names = {**before, **now}
    return [f"{n} was {_text(before.get(n))}, is {_text(now.get(n))}" for n in names if before.get(n) != now.get(n)]


def _text(value: Any) -> str:
    """Return a value, or the methods that it names with their options, as text for a message."""
    several = value if isinstance(value, list | tuple) else [value]
    if not several or not all(isinstance(one, Mapping) and "name" in one for one in several):
        return short(value)
    return short(", ".join(str(Choice.parse(one)) for one in several))
