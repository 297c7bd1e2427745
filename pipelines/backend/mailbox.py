"""The board that joins workers and driver. It imports no torch: its process has only messages to keep."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=0)
class Board:
    """Where rank 0 leaves what it reports and the driver picks it up."""

    def __init__(self) -> None:
        self.events: list[tuple[str, tuple[Any, ...]]] = []
        self.failure: str | None = None

    def push(self, kind: str, *content: Any) -> None:
        """Leave an event."""
        self.events.append((kind, content))

    def pull(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Take all events."""
        events, self.events = self.events, []
        return events

    def fail(self, message: str) -> None:
        """Note that going on is useless: the first message counts."""
        self.failure = self.failure or message

    def failed(self) -> str | None:
        """Return what was noted."""
        return self.failure


def new_board() -> Any:
    """Start a board on the driver's node, where it stays whatever happens to the others."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=node).remote()  # type: ignore[attr-defined]
