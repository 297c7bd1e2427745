"""The mapping net: from extractor features to the seeds of all layers."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from metalora.adapters.formats import Format, Shape
from metalora.errors import UserError

SCOPES = ("layer", "shared")


class MappingNet(nn.Module):
    """seeds = identity + W_h MLP((e - mean) / spread), MetaLoRA (arXiv 2504.00460) section III.

    The MLP has ``depth`` layers of ``width`` with GELU; one linear map holds the heads of all layers. It starts
    at W_h = 0, so that a fresh net gives every sample the identity seed. The features are standardised by the
    statistics of the training set (`standardize`): otherwise the generator is unstable.

    Args:
        in_features: F, the number of extractor features.
        identity: (S,), the seed that changes nothing, all layers side by side.
        depth: Number of layers before the heads.
        width: Width of these layers.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, in_features: int, identity: Tensor, depth: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("spread", torch.ones(in_features))
        sizes = [in_features] + [width] * depth
        blocks = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.GELU())]
        self.trunk = nn.Sequential(*blocks)
        self.heads = nn.Linear(width, identity.numel())
        nn.init.zeros_(self.heads.weight)
        with torch.no_grad():
            self.heads.bias.copy_(identity)

    def forward(self, condition: Tensor) -> Tensor:
        """Map extractor features (B, F) to seeds (B, S), without autocast: bfloat16 rounds a seed near 1 by 0.004."""
        if condition.shape[-1:] != self.mean.shape:
            met, wanted = condition.shape[-1], self.mean.numel()
            raise UserError(f"the extractor gives {met} features, and this mapping net takes {wanted}")
        with torch.autocast(condition.device.type, enabled=False):
            standard = (condition.to(self.mean.dtype) - self.mean) / self.spread
            seeds: Tensor = self.heads(self.trunk(standard))
        return seeds

    def standardize(self, features: Tensor) -> None:
        """Set mean and spread from training features (N, F); a constant feature keeps a spread of 1."""
        wide = features.double()
        mean, spread = wide.mean(0), wide.std(0, correction=0)
        constant = spread <= 1e-6 * mean.abs().clamp(min=1.0)
        self.mean.copy_(mean)
        self.spread.copy_(torch.where(constant, torch.ones_like(spread), spread))


def mean_by_task(seeds: Tensor, task: Tensor) -> Tensor:
    """Replace every image's seed by the mean seed of its task's images.

    Args:
        seeds: (B, S), the seed of each image.
        task: (B,), the task of each image.

    Returns:
        The mean seeds, (B, S).
    """
    with torch.autocast(seeds.device.type, enabled=False):
        wide = seeds if seeds.dtype == torch.float64 else seeds.float()
        same = (task[:, None] == task[None, :]).to(wide.dtype)
        return same @ wide / same.sum(1, keepdim=True)


def mapping_size(in_features: int, seeds: int, depth: int, width: int) -> int:
    """Return the number of parameters of a `MappingNet` with S = ``seeds``, without making it."""
    return width * (in_features + 1) + (depth - 1) * width * (width + 1) + seeds * (width + 1)


def seed_layout(format: Format, shapes: Mapping[str, Shape], scope: str) -> tuple[dict[str, slice], Tensor]:
    """Lay out the seeds of all layers side by side.

    Args:
        format: The decomposition format.
        shapes: The layers' sizes, by name.
        scope: ``layer``: one seed per layer; ``shared``: one for all layers of the same rank.

    Returns:
        Each layer's slice, and the identity seed (S,). S = 0 for a format without generated seeds.
    """
    if format.seed != "generated":
        return dict.fromkeys(shapes, slice(0, 0)), torch.zeros(0)
    slices: dict[str, slice] = {}
    owners: dict[str | int, slice] = {}
    identities: list[Tensor] = []
    end = 0
    for name, shape in shapes.items():
        owner = name if scope == "layer" else shape.rank
        if owner not in owners:
            identities.append(format.identity(shape))
            owners[owner] = slice(end, end + identities[-1].numel())
            end = owners[owner].stop
        slices[name] = owners[owner]
    return slices, torch.cat(identities)
