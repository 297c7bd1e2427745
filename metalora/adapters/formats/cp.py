"""MetaLoRA's CP format (arXiv 2504.00460, eq. 6)."""

from metalora.adapters.formats.base import FORMATS, Diagonal


class Cp(Diagonal):
    """A generated vector c in R^R joins the factors: dW[.., i, o] = sum_r A[.., i, r] c_r B[r, o].

    Channels M = R. With c = 1 it is LoRA.
    """

    seed = "generated"


FORMATS.register("cp", Cp)
