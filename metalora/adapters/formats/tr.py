"""MetaLoRA's tensor-ring format (arXiv 2504.00460, eq. 7)."""

import math

import torch
from torch import Tensor

from metalora.adapters.formats.base import FORMATS, Format, Shape


@FORMATS.register("tr")
class Tr(Format):
    """A generated matrix C in R^{R x R} closes a ring of three cores (arXiv 2504.00460, eq. 7).

    dW[.., i, o] = sum_{r0, r1, r2} A[r0, .., i, r1] B[r1, o, r2] C[r2, r0]

    Channels M = R^2: Down's channel r0 R + r1 is A[r0, .., :, r1], Up's channel r2 R + r1 is B[r1, :, r2], and
    modulate maps h[r0, r1] to sum_{r0} C[r2, r0] h[r0, r1]. The flat seed is C row by row.
    """

    seed = "generated"

    def channels(self, shape: Shape) -> int:
        """Return M = R^2."""
        return shape.rank**2

    def identity(self, shape: Shape) -> Tensor:
        """Return the unit matrix, flat, (R R,)."""
        return torch.eye(shape.rank).flatten()

    def modulate(self, h: Tensor, c: Tensor, channel_dim: int) -> Tensor:
        """Contract the index r0. See `Format.modulate`."""
        if channel_dim == 1:
            rank = _side(c.shape[-1])
            core = c.unflatten(-1, (rank, rank)).expand(h.shape[0], -1, -1)
            return torch.einsum("bqp,bpr...->bqr...", core, h.unflatten(1, (rank, rank))).flatten(1, 2)
        # With r0 not leading, the contraction itself would permute h, and its gradient, before and after.
        return (h.reshape(c.shape[0], -1, h.shape[-1]) @ self.mixing(c)).view(h.shape)

    def mixing(self, c: Tensor) -> Tensor:
        """Return the Kronecker products C^T x 1, (B, R R, R R). See `Format.mixing`."""
        rank = _side(c.shape[-1])
        core = c.unflatten(-1, (rank, rank)).transpose(1, 2)  # (B, r0, r2)
        unit = torch.eye(rank, dtype=c.dtype, device=c.device)
        products: Tensor = core[:, :, None, :, None] * unit[:, None]
        return products.flatten(3, 4).flatten(1, 2).contiguous()

    def contract(self, down: Tensor, up: Tensor, c: Tensor) -> Tensor:
        """Contract the three cores to the dense update. See `Format.contract`."""
        import tensorly
        from tensorly.tr_tensor import tr_to_tensor

        rank = _side(c.shape[-1])
        core_a = down.unflatten(0, (rank, rank)).movedim(1, 2)  # (r0, I, r1)
        core_b = up.unflatten(1, (rank, rank)).permute(2, 0, 1)  # (r1, O, r2)
        core_c = c.reshape(rank, 1, rank)  # (r2, 1, r0)
        with tensorly.backend_context("pytorch", local_threadsafe=True):
            dense: Tensor = tr_to_tensor([core_a, core_b, core_c])[:, :, 0].T
        return dense


def _side(size: int) -> int:
    return math.isqrt(size)
