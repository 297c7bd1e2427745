"""Bringing up a cluster for several campaigns."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from metalora.config import ClusterConfig
from pipelines import ray_cluster


def test_a_lasting_cluster_is_started_when_first_needed_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def cluster(settings: ClusterConfig) -> Iterator[None]:
        events.append("start")
        yield
        events.append("stop")

    monkeypatch.setattr(ray_cluster, "cluster", cluster)
    monkeypatch.setattr("ray.is_initialized", lambda: "start" in events)
    with ray_cluster.lasting_cluster() as open_cluster:
        events.append("begin")
        for name in ("one", "two"):
            with open_cluster(ClusterConfig()):
                events.append(name)
    assert events == ["begin", "start", "one", "two", "stop"]
