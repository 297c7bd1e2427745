"""LoRA (Hu et al., arXiv 2106.09685) and, on convolutions, Conv-LoRA (MetaLoRA eq. 5)."""

from metalora.adapters.formats.base import FORMATS, Diagonal


class Lora(Diagonal):
    """No seed: dW = A x_4 B, that is dW[k, k', i, o] = sum_r A[k, k', i, r] B[r, o].

    Channels M = R.
    """

    seed = "none"


FORMATS.register("lora", Lora)
