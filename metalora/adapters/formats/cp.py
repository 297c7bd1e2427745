"""MetaLoRA's CP format (arXiv 2504.00460, eq. 6)."""

from metalora.adapters.formats.base import FORMATS, Diagonal


@FORMATS.register("cp")
class Cp(Diagonal):
    """A generated vector c in R^R joins the factors (arXiv 2504.00460, eq. 6).

    dW[.., i, o] = sum_r A[.., i, r] c_r B[r, o]

    Channels M = R. With c = 1 it is LoRA.
    """

    seed = "generated"
