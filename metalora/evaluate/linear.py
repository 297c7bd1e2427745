"""Accuracy of a linear classifier on frozen features, computed on the features' device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metalora.errors import UserError

C = 1.0
STEPS, TOLERANCE = 2000, 1e-6


def linear_predict(gallery: Tensor, gallery_labels: Tensor, queries: Tensor, c: float = C) -> Tensor:
    """Predict the queries' labels by a multinomial logistic regression fitted to the gallery.

    On features standardised by the gallery's mean and spread, the fit minimises, over W and b,

        |W|^2 / 2 + c * sum_i cross_entropy(W x_i + b, y_i),

    This is scikit-learn's objective, minimised by L-BFGS (Liu and Nocedal 1989) in float64, to a largest gradient of
    1e-6 per sample.

    Args:
        gallery: (n, d).
        gallery_labels: (n,), integers; classes that the gallery lacks are never predicted.
        queries: (m, d), of the gallery's device.
        c: Inverse strength of the regularisation.

    Returns:
        Labels (m,), long, on the features' device.

    Raises:
        UserError: some features are not finite.
    """
    if not bool(gallery.isfinite().all() & queries.isfinite().all()):
        raise UserError("linear classifier: features hold NaN or infinity")
    mean, spread = gallery.double().mean(0), gallery.double().std(0, correction=0)
    spread = torch.where(spread > 1e-6 * mean.abs().clamp(min=1.0), spread, 1.0)
    classes, targets = gallery_labels.to(gallery.device).unique(return_inverse=True)
    with torch.autocast(gallery.device.type, enabled=False):
        weight, bias = _fit((gallery.double() - mean) / spread, targets, len(classes), c)
        scores = F.linear((queries.double() - mean) / spread, weight, bias)
    predicted: Tensor = classes[scores.argmax(1)]
    return predicted


def linear_hits(gallery: Tensor, gallery_labels: Tensor, queries: Tensor, query_labels: Tensor) -> Tensor:
    """Tell for which queries `linear_predict` is right, (m,), given their true labels ``query_labels`` (m,)."""
    predicted = linear_predict(gallery, gallery_labels, queries)
    return predicted == query_labels.to(predicted.device)


@torch.enable_grad()
def _fit(x: Tensor, targets: Tensor, classes: int, c: float) -> tuple[Tensor, Tensor]:
    """Return W (classes, d) and b (classes,)."""
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), targets) + weight.square().sum() / (2 * c * len(x))
        value.backward()
        return value

    optimizer.step(objective)
    return weight.detach(), bias.detach()
