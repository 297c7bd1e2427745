"""The search behind k-NN: selection by groups, and the product by oneDNN, against plain sorting and float64."""

import pytest
import torch

from metalora.evaluate.knn import GROUP, _Block, _top_of_groups, knn_predict


@pytest.mark.parametrize("width", [1, GROUP, 30 * GROUP, 30 * GROUP + 17])
@pytest.mark.parametrize("values", [2, 40, 100_000])
def test_selection_by_groups_is_a_stable_sort(width: int, values: int) -> None:
    similarity = torch.randint(values, (50, width)).float()
    found, columns = _top_of_groups(similarity, 10)
    wanted = similarity.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found, wanted.values[:, :10])
    assert torch.equal(columns, wanted.indices[:, :10])


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_similarities_are_exact_to_float32(metric: str) -> None:
    rows, queries = torch.randn(300, 64), torch.randn(20, 64)
    exact = queries.double() @ rows.double().T
    if metric == "l2":
        exact -= rows.double().square().sum(1) / 2
    torch.testing.assert_close(_Block(rows, metric).similarity(queries).double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wide_gallery_is_searched_in_full(dtype: torch.dtype) -> None:
    gallery, queries = torch.randn(9000, 8, dtype=dtype), torch.randn(300, 8, dtype=dtype)
    nearest = torch.cdist(queries.double(), gallery.double()).argmin(dim=1)
    found = knn_predict(gallery, torch.arange(9000), queries, k=[1, 10], classes=9000, metric="l2")
    assert torch.equal(found["uniform", 1], nearest)
