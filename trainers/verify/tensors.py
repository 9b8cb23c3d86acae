"""Tensors of recorded cases on the device that computes them, and back as arrays.

`crossreel verify --device cuda` makes that device torch's default one while a case runs, so that networks and new
tensors lie on it without a word in the modules of the cases; what comes from files and arrays passes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import UserError


def require_device(name: str) -> None:
    """Raise UserError for a device that is unknown or that this machine does not have."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"{name!r} is no device; possible are cpu, cuda and cuda:<number>")
    device = torch.device(name)
    if device.type == "cuda" and not 0 <= (device.index or 0) < torch.cuda.device_count():
        raise UserError(f"there is no device {name}; torch sees {torch.cuda.device_count()} GPUs here")


@contextmanager
def computing_on(device: str) -> Iterator[None]:
    """Make `device` the default of all that runs in the block, without TF32, whose products have 10 bits."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the default device."""
    return load_file(path, device=str(torch.get_default_device()))


def tensor(values: NDArray[Any]) -> Tensor:
    """The values of an array, on the default device."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.get_default_device())


def array(values: Tensor) -> NDArray[Any]:
    """The values of a tensor of any device, without its gradient."""
    out: NDArray[Any] = values.detach().cpu().numpy()
    return out
