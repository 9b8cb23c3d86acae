"""Cases on a device that the user names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from trainers.registry import METHODS
from trainers.verify.cases import verify
from trainers.verify.tensors import computing_on, require_device

FIXTURES = Path(__file__).parents[2] / "fixtures"


def test_a_block_computes_in_float32_and_leaves_torch_as_it_was() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with computing_on("cpu"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_is_made_in_a_block_lies_on_its_device() -> None:
    with computing_on("meta"):
        assert torch.zeros(2).device.type == torch.nn.Linear(2, 2).weight.device.type == "meta"
    assert torch.zeros(2).device.type == "cpu"


@pytest.mark.parametrize("name", ["fpga", "meta", "cuda:", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=name):
        require_device(name)


@pytest.mark.gpu
@pytest.mark.parametrize("method", [name for name in METHODS.names() if (FIXTURES / name).is_dir()])
def test_a_gpu_computes_what_the_authors_code_computed(method: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    failed = [
        f"{case.path.name}: {quantity}"
        for case in verify(FIXTURES / method, method, "cuda")
        for quantity in case.quantities
        if not quantity.ok
    ]
    assert not failed
