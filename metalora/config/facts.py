"""Facts about a setting beside its type, default and description; they stand on the setting's field."""

import dataclasses
from functools import partial
from typing import Any

from pydantic import Field

_ANY = object()


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about a setting.

    Attributes:
        searched: Whether it may differ between the trials of a campaign.
        free: Whether it may change when a training is resumed.
        extends: Whether it may be raised when a training is resumed, which is then trained longer.
        graph_needs: The only value that allows steps to be replayed as CUDA graphs.
        words: Other words that people type for it; an error message then names the setting.
    """

    searched: bool = True
    free: bool = False
    extends: bool = False
    graph_needs: Any = _ANY
    words: tuple[str, ...] = ()

    def forbids_graph(self, value: Any) -> bool:
        """Tell whether this value of the setting keeps steps from being replayed as CUDA graphs."""
        return self.graph_needs is not _ANY and value != self.graph_needs


def setting(
    *,
    default: Any,
    description: str,
    searched: bool = True,
    free: bool = False,
    extends: bool = False,
    graph_needs: Any = _ANY,
    words: tuple[str, ...] = (),
    **checks: Any,
) -> Any:
    """Declare a setting: its default, description, facts and checks, once.

    Args:
        default: Its default value.
        description: One line of help.
        searched: As for `Facts`.
        free: As for `Facts`.
        extends: As for `Facts`.
        graph_needs: As for `Facts`.
        words: As for `Facts`.
        checks: Arguments of pydantic's ``Field``, such as ``ge=1``.
    """
    facts = Facts(searched, free, extends, graph_needs, words)
    return Field(default=default, description=description, json_schema_extra={"facts": facts}, **checks)  # type: ignore[dict-item]


fixed = partial(setting, searched=False)  # it is the same for all trials of a campaign


def facts_of(field: "dataclasses.Field[Any]") -> Facts:
    """Return the facts that stand on a setting's field."""
    extra = getattr(field.default, "json_schema_extra", None) or {}
    return extra.get("facts", Facts())  # type: ignore[no-any-return]
