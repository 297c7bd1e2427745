"""Predict from many images, in this process or on Ray."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray

from metalora.config import ClusterConfig
from metalora.errors import UserError
from metalora.models.predictor import Prediction, Predictor
from pipelines.backend.cluster import cluster, gpus_per_worker
from pipelines.backend.device import this_device

Chunk = list[tuple[str, bytes]]  # names and bytes of image files
Numbered = Iterator[tuple[int, Chunk]]
Found = Iterator[tuple[int, list[str], list[Prediction | UserError]]]  # number of the chunk, names, predictions


def predict_here(predictor: Predictor, chunks: Numbered, top: int, features: bool) -> Found:
    """Yield the predictions of numbered chunks, in this process, on its GPU if there is one."""
    predictor.model.to(this_device())
    for number, chunk in chunks:
        yield number, *_predict(predictor, chunk, top, features)


def predict_on_ray(
    settings: ClusterConfig, workers: int, predictor: Predictor, chunks: Numbered, top: int, features: bool
) -> Found:
    """Yield the predictions of numbered chunks, on the actors of a cluster, in the order in which they come.

    Raises:
        UserError: there is no such cluster, or it has too few CPUs or GPUs.
    """
    settings = replace(settings, workers=workers)
    with cluster(settings):
        resources = {"num_cpus": settings.cpus_per_worker, "num_gpus": gpus_per_worker(settings)}
        shared = ray.put(predictor)
        idle = [ray.remote(**resources)(_Actor).remote(shared) for _ in range(workers)]
        running: dict[Any, tuple[int, Any]] = {}
        for number, chunk in chunks:
            if not idle:
                yield _first(running, idle)
            actor = idle.pop()
            running[actor.predict.remote(chunk, top, features)] = number, actor
        while running:
            yield _first(running, idle)


def _first(running: dict[Any, tuple[int, Any]], idle: list[Any]) -> tuple[int, list[str], list[Any]]:
    """Wait for a chunk, and return its number, names and predictions."""
    ready, _ = ray.wait(list(running))
    number, actor = running.pop(ready[0])
    idle.append(actor)
    names, found = ray.get(ready[0])
    return number, names, found


class _Actor:
    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        predictor.model.to(this_device(bool(ray.get_gpu_ids())))

    def predict(self, chunk: Chunk, top: int, features: bool) -> Any:
        return _predict(self.predictor, chunk, top, features)


def _predict(
    predictor: Predictor, chunk: Chunk, top: int, features: bool
) -> tuple[list[str], list[Prediction | UserError]]:
    names = [name for name, _ in chunk]
    return names, list(predictor.stream([image for _, image in chunk], top, features, names))
