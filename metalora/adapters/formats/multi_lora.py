"""Multi-LoRA: parallel low-rank branches with learned scales (Wang et al., arXiv 2311.11501)."""

from metalora.adapters.formats.base import FORMATS, Diagonal


class MultiLora(Diagonal):
    """N branches of rank R each, joined by learned scale vectors g: dW = sum_n A_n diag(g_n) B_n.

    The branches lie side by side in one Down and one Up, so channels M = N R and g has shape (N R,).

    Args:
        branches: N.
    """

    seed = "learned"

    def __init__(self, branches: int) -> None:
        self.branches = branches

    def channels(self, rank: int) -> int:
        """Return M = N R."""
        return self.branches * rank


FORMATS.register("multi_lora", MultiLora)
