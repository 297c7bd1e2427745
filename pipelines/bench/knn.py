"""Compare the k-NN search with scikit-learn's brute force, on the same features, with K = 5 and 10 and both votes.

Shapes: n gallery rows, m queries, D features.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor

from metalora.errors import UserError
from metalora.evaluate.knn import VOTES, Metric, knn_predict
from pipelines.backend.device import this_device
from pipelines.bench.common import Result, Size, Timing, publish, read_options, timed

K = (5, 10)
TEMPERATURE = 0.07
AGREE = 0.999  # of the answers: float32 rounds equal distances either way
THEIR_METRIC: dict[Metric, str] = {"cosine": "cosine", "l2": "euclidean"}
PRODUCT = 2048  # side of the matrices whose product gives the machine's rate
SIZES = {
    "gallery": Size("gallery features", 4000, 50_000),
    "queries": Size("query features", 500, 10_000),
    "features": Size("numbers per feature vector", 128, 512),
    "classes": Size("classes", 20, 100),
    "repeats": Size("rounds", 3, 3),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora bench knn``."""
    options = read_options("knn", __doc__ or "", SIZES, arguments)
    if options.gallery < max(K):
        raise UserError(f"--gallery {options.gallery} is too small for K = {max(K)}")
    rows = []
    for kind in ("clustered", "random"):
        features = make_features(kind, options.gallery, options.queries, options.features, options.classes)
        for metric in THEIR_METRIC:
            rows += compare(kind, metric, *features, options.classes, options.repeats)
    shape = f"{options.gallery:,} x {options.features}"
    measured = (
        f"Seconds to label {options.queries:,} queries by a gallery of {shape} float32 features, for K = 5 and 10 and "
        "both votes: ours searches once; scikit-learn's KNeighborsClassifier (brute, all cores) searches in each of "
        '"4 calls". "1 search" is its NearestNeighbors for the larger K, without any vote. Ratios are theirs / ours; '
        "agreement is the smallest share of equal labels of the four."
    )
    floor = "the 2 m n D operations of the distance matrix at the rate of the faster float32 matrix product, torch's "
    floor += f"own or oneDNN's, {PRODUCT} x {PRODUCT} x {PRODUCT}, measured in the same rounds."
    facts = {"agreement": all(row["agreement"] >= AGREE for row in rows)}
    publish(Result("knn", measured, floor, rows, facts), options)


def make_features(kind: str, n: int, m: int, size: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make a gallery (n, D), its labels (n,) and queries (m, D), as classes around centres or as pure noise."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.randint(classes, (n,), generator=generator)
    if kind == "random":
        return noise(n, size), labels, noise(m, size)
    centres = noise(classes, size)
    truth = torch.randint(classes, (m,), generator=generator)
    # As wide as the centres are apart, so that neighbours of other classes vote too; ReLU, as features mostly are.
    return F.relu(centres[labels] + 1.5 * noise(n, size)), labels, F.relu(centres[truth] + 1.5 * noise(m, size))


def compare(
    kind: str, metric: Metric, gallery: Tensor, labels: Tensor, queries: Tensor, classes: int, repeats: int
) -> list[dict[str, Any]]:
    """Time our search and scikit-learn's in turn, and return one row per available device."""
    theirs = {f"{vote} {k}": _their_call(gallery, labels, queries, metric, vote, k) for vote in VOTES for k in K}
    search = NearestNeighbors(n_neighbors=max(K), algorithm="brute", metric=THEIR_METRIC[metric], n_jobs=-1)
    search.fit(gallery.numpy())
    answers: dict[str, Any] = {}
    known: dict[str, Timing] = {}
    rows: list[dict[str, Any]] = []
    for device in dict.fromkeys([torch.device("cpu"), this_device()]):
        features = [tensor.to(device) for tensor in (gallery, labels, queries)]

        def ours(features: list[Tensor] = features) -> None:
            answers["ours"] = knn_predict(
                features[0], features[1], features[2], k=K, classes=classes, metric=metric, temperature=TEMPERATURE
            )

        calls: dict[str, Callable[[], Any]] = {"ours": ours, **_products(device)}
        if not known:  # once is enough: they know no GPU
            calls |= {name: _keep(answers, name, call) for name, call in theirs.items()}
            calls["1 search"] = lambda: search.kneighbors(queries.numpy())
        times = timed(calls, repeats, 0, device)  # the median of three leaves out a cold first; a round takes minutes
        known = known or times
        shares = [
            float(np.mean(answers["ours"][vote, k].cpu().numpy() == answers[f"{vote} {k}"]))
            for vote in VOTES
            for k in K
        ]
        rows.append(_row(kind, metric, device, times, known, min(shares), 2.0 * len(queries) * gallery.numel()))
    return rows


def _row(
    kind: str,
    metric: str,
    device: torch.device,
    times: dict[str, Timing],
    theirs: dict[str, Timing],
    agreement: float,
    operations: float,
) -> dict[str, Any]:
    ours = times["ours"].median
    four = sum(theirs[f"{vote} {k}"].median for vote in VOTES for k in K)
    rate = 2.0 * PRODUCT**3 / min(times[name].median for name in times if name.startswith("product"))
    floor = operations / rate
    return {
        "features": kind,
        "metric": metric,
        "device": device.type,
        "ours s": ours,
        "4 calls s": four,
        "ratio to 4 calls": four / ours,
        "1 search s": theirs["1 search"].median,
        "ratio to 1 search": theirs["1 search"].median / ours,
        "floor s": floor,
        "ours to floor": ours / floor,
        "product GFLOP/s": rate / 1e9,
        "spread": times["ours"].spread,
        "agreement": agreement,
    }


def _their_call(
    gallery: Tensor, labels: Tensor, queries: Tensor, metric: Metric, vote: str, k: int
) -> Callable[[], Any]:
    """Return a function that fits scikit-learn's classifier, which only keeps the gallery, and labels the queries."""
    weights = _their_weights(metric) if vote == "weighted" else vote
    judge = KNeighborsClassifier(k, weights=weights, algorithm="brute", metric=THEIR_METRIC[metric], n_jobs=-1)
    return lambda: judge.fit(gallery.numpy(), labels.numpy()).predict(queries.numpy())


def _their_weights(metric: Metric) -> Callable[[Any], Any]:
    """Return the weighted vote, softmax(s / T), as a function of scikit-learn's distances (m, K)."""

    def weights(distance: Any) -> Any:
        closeness = -distance if metric == "cosine" else -(distance**2) / 2
        return np.exp((closeness - closeness.max(axis=1, keepdims=True)) / TEMPERATURE)

    return weights


def _keep(answers: dict[str, Any], name: str, call: Callable[[], Any]) -> Callable[[], None]:
    def keep() -> None:
        answers[name] = call()

    return keep


def _products(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return matrix products to measure the machine by: torch's own and, on a CPU, oneDNN's."""
    a, b = torch.randn(2, PRODUCT, PRODUCT, device=device)
    products: dict[str, Callable[[], Any]] = {"product": lambda: a @ b.T}
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        one, other = a.to_mkldnn(), b.to_mkldnn()
        products["product by oneDNN"] = lambda: F.linear(one, other)
    return products
