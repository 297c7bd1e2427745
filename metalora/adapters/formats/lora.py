"""LoRA (Hu et al., arXiv 2106.09685) and, on convolutions, Conv-LoRA (MetaLoRA eq. 5)."""

from metalora.adapters.formats.base import FORMATS, Diagonal


@FORMATS.register("lora")
class Lora(Diagonal):
    """LoRA, which has no seed (arXiv 2106.09685; on convolutions arXiv 2504.00460, eq. 5).

    dW[k, k', i, o] = sum_r A[k, k', i, r] B[r, o]

    Channels M = R.
    """

    seed = "none"
