"""Multi-LoRA: parallel low-rank branches with learned scales (Wang et al., arXiv 2311.11501)."""

from metalora.adapters.formats.base import FORMATS, Diagonal, Shape
from metalora.config import setting


@FORMATS.register("multi_lora")
class MultiLora(Diagonal):
    """N branches of rank R each, joined by learned scale vectors g (arXiv 2311.11501).

    dW = sum_n A_n diag(g_n) B_n

    The branches lie side by side in one Down and one Up, so channels M = N R and g has shape (N R,).
    """

    seed = "learned"
    branches: int = setting(
        default=4, ge=1, le=2**20, description="parallel branches N", words=("num_branches", "n_branches", "experts")
    )

    def channels(self, shape: Shape) -> int:
        """Return M = N R."""
        return self.branches * shape.rank
