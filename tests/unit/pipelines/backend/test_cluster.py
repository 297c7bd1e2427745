"""Which cluster, and whether it answers; bringing up one for several campaigns."""

import socket
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest

from metalora.config import ClusterConfig
from metalora.errors import UserError
from pipelines.backend import cluster as ray_cluster


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8265", "is where `ray job submit` sends jobs"),
        ("https://cluster.example", "is where `ray job submit` sends jobs"),
        ("nonsense", "wanted HOST:PORT"),
        ("host:port", "wanted HOST:PORT"),
        ("grpc://127.0.0.1:1", "wanted HOST:PORT"),
        ("HTTP://127.0.0.1:8265", "is where `ray job submit` sends jobs"),
        ("a..b:1", "no Ray cluster answers at a..b:1"),
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1: .*refused"),
        ("ray://127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1: .*refused"),
        ("[::1]:1", r"no Ray cluster answers at \[::1\]:1"),
        ("127.0.0.1:99999", "wanted HOST:PORT"),
        ("127.0.0.1:0", "wanted HOST:PORT"),
        ("no-such-host.invalid:6379", "no Ray cluster answers at no-such-host.invalid:6379"),
    ],
)
def test_an_address_where_no_cluster_is_is_one_error_within_seconds(address: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=said) as error:
        ray_cluster.ask(address)
    assert time.monotonic() - began < 15
    assert "\n" not in str(error.value)


def test_another_server_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "ANSWER_SECONDS", 0.5)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(UserError, match="is no head of a Ray cluster"):
        ray_cluster.ask(f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_that_speaks_grpc_may_be_one() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ray_cluster.ask(f"127.0.0.1:{port}")
    server.stop(None).wait()


@pytest.mark.parametrize(("variable", "address"), [("", None), ("local", None), ("auto", "auto"), ("h:1", "h:1")])
def test_the_variable_says_which_cluster(monkeypatch: pytest.MonkeyPatch, variable: str, address: str | None) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert ray_cluster.cluster_address(ClusterConfig()) == address
    assert ray_cluster.cluster_address(ClusterConfig(ray_address="own:2")) == "own:2"


def test_the_command_asks_before_it_reads_the_data(refused, settings, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("pipelines.backend.prepare.open_table", None)
    message = refused(settings("--workers", "1", "--ray-address", "127.0.0.1:1"))
    assert message.startswith("Ray address '127.0.0.1:1' (--ray-address): no Ray cluster answers")


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
