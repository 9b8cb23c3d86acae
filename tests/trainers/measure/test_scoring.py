"""The scoring kernel against one product over everything."""

from __future__ import annotations

import pytest
import torch

from trainers.measure.scoring import max_similarity


@pytest.mark.parametrize(
    ("texts", "items", "length"), [(1100, 35, 128), (3, 50, 1), (1, 1, 5), (700, 301, 64)]
)
def test_chunks_that_split_unevenly_equal_one_product_in_double_precision(
    texts: int, items: int, length: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(texts, 24, generator=generator)
    v = torch.randn(items, length, 24, generator=generator)
    expected = torch.einsum("qd,vld->qvl", q.double(), v.double()).amax(2)
    assert max_similarity(q, v).shape == (texts, items)
    torch.testing.assert_close(max_similarity(q, v).double(), expected, rtol=1e-5, atol=1e-5)


def test_zero_rows_of_padding_take_part_in_the_maximum() -> None:
    q, v = torch.tensor([[1.0, 0.0]]), torch.tensor([[[-0.5, 0.0], [0.0, 0.0]]])
    assert max_similarity(q, v).item() == 0
