from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trainers.loop.precision import computing_in, sentence

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    kept = flags()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("precision", "rounded"), [("fp32", False), ("bf16", False), ("tf32", True)])
def test_products_of_a_gpu_are_rounded_for_tf32_alone_and_as_before_afterwards(
    precision: str, rounded: bool
) -> None:
    before = flags()
    with computing_in(precision, GPU):
        assert flags() == (rounded, rounded)
    with computing_in(precision, CPU):
        assert flags() == before
    assert flags() == before


def test_a_training_is_told_what_its_precision_changes_where_it_changes_anything() -> None:
    assert sentence("fp32", CPU) == ""
    assert "without TF32" in sentence("fp32", GPU) and "10 bits" in sentence("tf32", GPU)
    for device in (CPU, GPU):
        assert "bfloat16" in sentence("bf16", device)
        assert "float16, as released" in sentence("fp16-legacy", device)
    assert sentence("tf32", CPU) != sentence("tf32", GPU)
