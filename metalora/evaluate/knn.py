"""Exact k-nearest-neighbour accuracy, computed on the features' device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metalora.errors import UserError

Metric = Literal["cosine", "l2"]
Vote = Literal["uniform", "weighted"]

VOTES: tuple[Vote, ...] = ("uniform", "weighted")

CHUNK = 4096  # query and gallery rows compared at a time on a GPU
CPU_CHUNK = (256, 8192)  # on a CPU: 8 MiB of similarities, which stay in its cache until they are looked at
GROUP = 64  # neighbouring gallery rows of which only the nearest is looked at first


@dataclass(frozen=True)
class KnnResult:
    """k-NN accuracies, in [0, 1].

    Attributes:
        overall: Vote -> K -> accuracy over all queries.
        by_domain: Domain -> vote -> K -> accuracy over the domain's queries; domains without queries are absent.
        queries: Domain -> number of its queries.
        right: (m,) whether each query is right by the uniform vote of the largest K.
    """

    overall: dict[str, dict[int, float]]
    by_domain: dict[str, dict[str, dict[int, float]]]
    queries: dict[str, int]
    right: Tensor = field(compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the accuracies as plain values for JSON: the numbers K become strings."""
        return {
            "overall": _with_text_keys(self.overall),
            "by_domain": {domain: _with_text_keys(votes) for domain, votes in self.by_domain.items()},
            "queries": dict(self.queries),
        }


@torch.no_grad()
def knn_predict(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    *,
    k: Sequence[int],
    classes: int,
    metric: Metric = "cosine",
    temperature: float = 0.07,
    chunk: int | None = None,
) -> dict[tuple[Vote, int], Tensor]:
    """Predict the queries' labels by their nearest neighbours, with one search for all votes and K.

    With s the cosine similarity, or -|q - g|^2 / 2 for ``l2`` (on unit vectors the same up to a constant),
    the K largest s are the neighbours; of equal ones (as computed) the lower gallery index comes first.
    ``uniform``: every neighbour has one vote, a tie goes to the smallest class index (scikit-learn's
    rule). ``weighted``: a neighbour's vote is softmax(s / temperature) over the K (Wu et al. 2018,
    arXiv 1805.01978; DINO, Caron et al. 2021, arXiv 2104.14294).

    Args:
        gallery: (n, d), floating; float64 features are computed in float64, all others in full float32.
        gallery_labels: (n,), integers in [0, classes).
        queries: (m, d), of the gallery's dtype and device.
        k: The numbers of neighbours K, each at least 1.
        classes: Number of classes.
        metric: ``cosine`` or ``l2``.
        temperature: Temperature of the weighted vote.
        chunk: Gallery rows and query rows compared at a time (default: fits the device). Beside the features and a
            copy of them prepared for the search, chunk x chunk similarities are in memory.

    Returns:
        (vote, K) -> predicted labels, (m,) long, on the features' device.

    Raises:
        UserError: K is below 1 or above n, there are no queries, features are not finite, or the metric is unknown.
    """
    _check(gallery, queries, k, metric)
    gallery, queries = _prepared(gallery, metric), _prepared(queries, metric)
    gallery_labels = gallery_labels.to(gallery.device)
    found: dict[tuple[Vote, int], list[Tensor]] = {(vote, n): [] for vote in VOTES for n in k}
    with _full_precision(gallery.device.type):
        rows, columns = (chunk, chunk) if chunk else CPU_CHUNK if gallery.device.type == "cpu" else (CHUNK, CHUNK)
        blocks = [_Block(block, metric) for block in torch.split(gallery, columns)]
        for part in torch.split(queries, rows):
            scores, index = _nearest(blocks, part, max(k))
            for key, labels in _vote(scores / temperature, gallery_labels[index], classes).items():
                if key in found:
                    found[key].append(labels)
    return {key: torch.cat(parts) for key, parts in found.items()}


def knn_accuracy(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    query_domains: Tensor,
    *,
    domains: Sequence[str],
    k: Sequence[int],
    classes: int,
    metric: Metric = "cosine",
    temperature: float = 0.07,
    chunk: int | None = None,
) -> KnnResult:
    """Compute the accuracy of `knn_predict`, overall and by domain.

    Args:
        gallery: (n, d).
        gallery_labels: (n,).
        queries: (m, d).
        query_labels: (m,).
        query_domains: (m,), indices into ``domains``.
        domains: Names of the domains.
        k: The numbers of neighbours K, each at least 1.
        classes: Number of classes.
        metric: ``cosine`` or ``l2``.
        temperature: Temperature of the weighted vote.
        chunk: Rows compared at a time, as in `knn_predict`.

    Raises:
        UserError: `knn_predict` refuses the arguments.
    """
    predicted = knn_predict(
        gallery,
        gallery_labels,
        queries,
        k=k,
        classes=classes,
        metric=metric,
        temperature=temperature,
        chunk=chunk,
    )
    labels = query_labels.to(queries.device)
    right = {key: (labels == answer).double().cpu() for key, answer in predicted.items()}
    rows = {name: (query_domains == number).cpu() for number, name in enumerate(domains)}
    rows = {name: mask for name, mask in rows.items() if mask.any()}

    def accuracies(mask: Tensor) -> dict[str, dict[int, float]]:
        return {vote: {n: right[vote, n][mask].mean().item() for n in k} for vote in VOTES}

    return KnnResult(
        overall=accuracies(torch.ones(len(labels), dtype=torch.bool)),
        by_domain={name: accuracies(mask) for name, mask in rows.items()},
        queries={name: int(mask.sum()) for name, mask in rows.items()},
        right=right["uniform", max(k)].bool(),
    )


def _check(gallery: Tensor, queries: Tensor, k: Sequence[int], metric: str) -> None:
    if metric not in ("cosine", "l2"):
        raise UserError(f"unknown k-NN metric {metric!r} (accepted: cosine, l2)")
    if min(k) < 1:
        raise UserError(f"k-NN with K = {min(k)}: K must be at least 1")
    if max(k) > len(gallery):
        raise UserError(f"k-NN with K = {max(k)} needs as many gallery images, and there are {len(gallery)}")
    if not len(queries):
        raise UserError("k-NN accuracy needs at least one query image, and there is none")
    for name, features in (("gallery", gallery), ("query", queries)):
        bad = int((~features.isfinite().all(dim=1)).sum())
        if bad:
            raise UserError(f"k-NN: {bad} of {len(features)} {name} features hold NaN or infinity")


def _prepared(features: Tensor, metric: str) -> Tensor:
    features = features if features.dtype == torch.float64 else features.float()
    return F.normalize(features, dim=1) if metric == "cosine" else features


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """No autocast, no TF32: whatever training has set, distances are exact to float32."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


class _Block:
    """Some rows of the gallery, (n, d), and the similarity of queries to them.

    For ``l2`` the similarity is q g - |g|^2 / 2: a query's own -|q|^2 / 2 changes neither order nor vote.
    """

    def __init__(self, rows: Tensor, metric: str) -> None:
        self.size = len(rows)
        self.onednn = _onednn_is_faster(rows)
        offset = rows.square().sum(1) / -2 if metric == "l2" else None
        self.rows = rows.to_mkldnn() if self.onednn else rows
        self.offset = offset.to_mkldnn() if self.onednn and offset is not None else offset

    def similarity(self, queries: Tensor) -> Tensor:
        """Return the similarities (m, n) of queries (m, d)."""
        if self.onednn:
            return F.linear(queries.to_mkldnn(), self.rows, self.offset).to_dense()
        return F.linear(queries, self.rows, self.offset)


def _onednn_is_faster(features: Tensor) -> bool:
    """Tell whether to multiply by oneDNN: torch's own choice, MKL, leaves AVX-512 unused on CPUs not of its maker."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
    return features.device.type == "cpu" and features.dtype == torch.float32 and wide


def _nearest(blocks: Sequence[_Block], queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return similarities and gallery indices of the k nearest, both (m, k), nearest first."""
    scores = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    start = 0
    for block in blocks:
        block_scores, block_index = _top_of_groups(block.similarity(queries), k)
        scores = torch.cat([scores, block_scores], dim=1)
        index = torch.cat([index, block_index + start], dim=1)
        start += block.size
        # Stable: what stands first, of a lower index, stays first among equals.
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, index = scores[:, :k], index.gather(1, order[:, :k])
    return scores, index


def _top_of_groups(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k (or all) largest of each row and their columns; of equals, the first column first.

    They stand in the k groups of columns with the largest maxima (of equals, the first groups): for anything outside,
    each of those k groups holds something larger, or as large and before it. Maxima cost less than a selection.
    """
    width = similarity.shape[1]
    whole = width // GROUP * GROUP
    if whole <= 2 * k * GROUP:
        return _top(similarity, k)
    _, groups = _top(similarity[:, :whole].unflatten(1, (-1, GROUP)).amax(dim=2), k)
    inside = torch.arange(GROUP, device=similarity.device)
    columns = (groups.sort(dim=1).values[:, :, None] * GROUP + inside).flatten(1)
    rest = torch.arange(whole, width, device=similarity.device).expand(len(similarity), -1)
    columns = torch.cat([columns, rest], dim=1)
    values, order = _top(similarity.gather(1, columns), k)
    return values, columns.gather(1, order)


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k (or all) largest of each row and their columns; of equals, the first column first."""
    width = similarity.shape[1]
    if width <= k:
        ordered = similarity.sort(dim=1, descending=True, stable=True)
        return ordered.values, ordered.indices
    values, columns = similarity.topk(k + 1, dim=1)
    tied = values[:, k - 1] == values[:, k]  # topk may have kept any of the equals
    columns = columns[:, :k].sort(dim=1).values
    if tied.any():
        columns[tied] = similarity[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    values, order = similarity.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _vote(logits: Tensor, labels: Tensor, classes: int) -> dict[tuple[Vote, int], Tensor]:
    """Return the winners for every K up to the width of ``logits`` and ``labels``, both (m, K)."""
    # The softmax's denominator is common to all classes, so leaving it out changes no winner.
    weights: dict[Vote, Tensor] = {
        "uniform": torch.ones_like(logits),
        "weighted": (logits - logits[:, :1]).exp(),
    }
    winners: dict[tuple[Vote, int], Tensor] = {}
    for vote, weight in weights.items():
        total = logits.new_zeros(len(logits), classes)
        for column in range(logits.shape[1]):
            # One neighbour at a time: sums in a fixed order, on every device.
            total.scatter_add_(1, labels[:, column : column + 1], weight[:, column : column + 1])
            winners[vote, column + 1] = total.argmax(dim=1)
    return winners


def _with_text_keys(votes: dict[str, dict[int, float]]) -> dict[str, dict[str, float]]:
    return {vote: {str(k): value for k, value in values.items()} for vote, values in votes.items()}
