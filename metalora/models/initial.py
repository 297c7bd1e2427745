"""Begin a training with the adapter of another one."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from metalora.adapters.files import read_adapter
from metalora.errors import UserError
from metalora.models.model import MetaLoRAModel
from metalora.models.persist import Description, described
from metalora.reading import gate, short

_HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class Initial:
    """An adapter that a training begins with.

    Attributes:
        place: Its folder, for messages.
        state: Its tensors by name.
        description: Its ``adapter.json``.
    """

    place: str
    state: dict[str, Tensor]
    description: Description

    def known(self, labels: tuple[str, ...]) -> list[str]:
        """Return those of some labels that its classifier knows."""
        return [label for label in labels if label in self.description.spec.labels]


def read_initial(path: Path) -> Initial:
    """Read the adapter folder that a training begins with.

    Raises:
        UserError: the folder has no adapter, or it is damaged.
    """
    state, content = read_adapter(path)
    return Initial(str(path), state, described(path, content))


def begin_with(model: MetaLoRAModel, initial: Initial) -> None:
    """Give a fresh model the values of an adapter; the classifier's rows go by the names of their labels.

    Rows of labels that the adapter does not know keep their fresh values.

    Raises:
        UserError: the adapter was trained on another backbone, or with another structure; the message names what
            differs.
    """
    with gate(f"adapter {initial.place}"):
        _check(model, initial)
        state = dict(initial.state)
        fresh = model.adapter_state()
        old, new = initial.description.spec.labels, model.spec.labels
        rows = {label: row for row, label in enumerate(old)}
        for name in _HEAD:
            if name not in fresh:
                continue
            if name not in state or len(state[name]) != len(old):
                raise UserError(f"tensor {name!r} does not have one row for each of its {len(old)} labels")
            at = torch.tensor([rows.get(label, -1) for label in new])
            known = (at >= 0).view(-1, *[1] * (fresh[name].dim() - 1))
            kept = fresh[name].cpu()
            state[name] = torch.where(known, state[name][at.clamp(min=0)].to(kept.dtype), kept) if old else kept
        model.load_adapter_state(state)


def _check(model: MetaLoRAModel, initial: Initial) -> None:
    description = initial.description
    for part, met in (("backbone", model.backbone_identity), ("extractor", model.extractor_identity)):
        want = getattr(description, part)
        if (want and want.hash) != (met and met["hash"]):
            was, here = want.name if want else "the backbone", met["name"] if met else "the backbone"
            same = ", with other weights" if was == here else ""
            raise UserError(f"its {part} was {was}, here it is {here}{same}")
    mine, its = model.spec, description.spec
    if its.make_format() != mine.make_format():
        raise UserError(f"its format was {its.format}, here it is {mine.format}")
    for field in fields(its):
        if field.name in ("labels", "format"):
            continue
        was, now = getattr(its, field.name), getattr(mine, field.name)
        if was != now:
            raise UserError(f"its {field.name} was {_shown(was)}, here it is {_shown(now)}")


def _shown(value: object) -> str:
    """Return a part of a spec, short: of adapted layers, how many there are and their ranks."""
    if isinstance(value, dict):
        ranks = sorted({placed.rank for placed in value.values()})
        return f"{len(value)} layers of rank {', '.join(map(str, ranks))}"
    return short(value)
