"""The Ray cluster: start or join it, and check that it answers and has enough resources."""

import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext

import ray
import torch

from metalora.config import ClusterConfig
from metalora.errors import UserError, given_as, one_line
from pipelines.surroundings import handle
from pipelines.verbosity import log_level

ANSWER_SECONDS = 5.0
HIGHEST_PORT = 65535  # the system takes a higher one for another, lower one
LOCAL = ("", "local")
STORE_SHARE = 0.4  # of one node's object store, for images

Open = Callable[[ClusterConfig], AbstractContextManager[None]]


@contextmanager
def cluster(settings: ClusterConfig) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster; stop or leave it at the end.

    Raises:
        UserError: no cluster answers at the address, or it has fewer CPUs or GPUs than the workers need.
    """
    address = cluster_address(settings)
    if address is not None:
        ask(address)
    else:
        # Nobody preempts one's own machine, and the watcher's actor greets the user with an error message.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Else Ray makes a token in the home folder: a container's user cannot write there, and two first starts race.
        if not any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        # On one's own machine what Ray's processes say is noise around our one line, and stays in Ray's log files.
        level = log_level() or logging.ERROR
        chatty = address is not None or level < logging.WARNING
        ray.init(address=address or "local", logging_level=level, log_to_driver=chatty)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM and callable(terminate):
            terminate(signal.SIGTERM, None)  # the signal came while Ray's own handler was there
        where = "cannot be started on this machine" if address is None else f"cannot be joined at {address!r}"
        raise UserError(f"Ray {where}: {one_line(error)}") from None
    try:
        handle(signal.SIGTERM, terminate)  # Ray's own handler aborts the process
        check_resources(settings, ray.cluster_resources(), f"the Ray cluster at {address}")
        yield
    finally:
        ray.shutdown()


@contextmanager
def lasting_cluster() -> Iterator[Open]:
    """Yield a replacement for `cluster` that keeps one cluster up for several runs in turn; the first run opens it.

    The cluster is stopped or left when this context ends. All runs must have the same cluster settings.
    """
    with ExitStack() as stack:

        def enter(settings: ClusterConfig) -> AbstractContextManager[None]:
            if not ray.is_initialized():
                stack.enter_context(cluster(settings))
            return nullcontext()

        yield enter


def cluster_address(settings: ClusterConfig) -> str | None:
    """Return the address of the cluster to join, or None for a local Ray."""
    address = settings.ray_address or os.environ.get("RAY_ADDRESS") or ""
    return None if address in LOCAL else address


def ask(address: str) -> None:
    """Check within seconds that a cluster answers; Ray itself would try for minutes.

    Raises:
        UserError: no cluster answers, or the address is not valid.
    """
    name = f"Ray address {address!r}{given_as('ray_address')}"
    if address.lower().startswith(("http://", "https://")):
        raise UserError(
            f"{name} is where `ray job submit` sends jobs; to join a cluster, its head is wanted: HOST:6379, "
            "ray://HOST:10001, or auto on one of its nodes"
        )
    place = _head() if address == "auto" else address.removeprefix("ray://").rpartition("@")[2]
    host, _, port = place.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) <= HIGHEST_PORT:
        raise UserError(f"{name}: wanted HOST:PORT, ray://HOST:PORT, auto, or local for a Ray of one's own")
    try:
        with closing(socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS)):
            pass
    except (OSError, ValueError) as error:  # ValueError: no name of a host
        raise UserError(f"{name}: no Ray cluster answers at {place}: {one_line(error)}") from None
    if not _speaks(place):
        raise UserError(f"{name}: what answers at {place} is no head of a Ray cluster")


def _head() -> str:
    """Return the address of the head that a node of a cluster knows.

    Raises:
        UserError: this machine is no such node.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Ray address 'auto'{given_as('ray_address')}: this machine belongs to no cluster: {one_line(error)}"
        ) from None


def _speaks(place: str) -> bool:
    """Tell whether a server speaks gRPC, as Ray's do; with encryption Ray itself has to find out."""
    import grpc

    if os.environ.get("RAY_USE_TLS") == "1":
        return True
    with closing(grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)])) as channel:
        try:
            grpc.channel_ready_future(channel).result(ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True


def this_machine() -> dict[str, float]:
    """Return the resources that a local Ray would have."""
    return {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}


def check_resources(settings: ClusterConfig, resources: Mapping[str, float], where: str) -> None:
    """Check that there are enough resources for the workers, before anyone waits for them.

    Raises:
        UserError: there are too few CPUs or GPUs.
    """
    for kind, each in (("CPU", settings.cpus_per_worker), ("GPU", settings.gpus_per_worker or 0)):
        needed, there = settings.workers * each, resources.get(kind, 0)
        if needed > there:
            raise UserError(
                f"{settings.workers} workers with {each:g} {kind}s each need {needed:g} {kind}s, "
                f"{where} has {there:g}: lower --workers or --{kind.lower()}s-per-worker"
            )


def room_for_images() -> float:
    """Return the bytes that images may take of Ray's object store on each node of the cluster."""
    nodes = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return STORE_SHARE * float(min(nodes))


def gpus_per_worker(settings: ClusterConfig) -> float:
    """Return the GPUs per worker: as set, or one if the cluster has enough."""
    if settings.gpus_per_worker is not None:
        return settings.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= settings.workers else 0.0
