"""In how many bits a training computes: set while it runs, and told in a sentence at its start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

HALF = (
    "CLIP's weights, gradients and moments are float16, as released: most updates below half a unit of a weight are "
    'lost; trajectory = "stable" trains in float32'
)
BRAIN = "layers compute in bfloat16 (7 bits of mantissa, not 23); weights, optimizer, losses and scores are float32"
SENTENCES = {
    (
        "fp32",
        "cuda",
    ): 'everything is float32, without TF32; precision = "tf32" computes matrix products faster, from '
    "inputs of 10 bits",
    (
        "tf32",
        "cuda",
    ): "matrix products and convolutions round their inputs to TF32 (10 bits of mantissa, not 23); sums, "
    "weights and optimizer are float32",
    ("tf32", "cpu"): "TF32 is a type of GPUs: here everything is float32",
    ("bf16", "cuda"): BRAIN,
    ("bf16", "cpu"): BRAIN,
    ("fp16-legacy", "cuda"): HALF,
    ("fp16-legacy", "cpu"): HALF,
}


def sentence(precision: str, device: torch.device) -> str:
    """What a precision changes on a device; "" for plain float32 on a CPU."""
    return SENTENCES.get((precision, device.type), "")


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """A block in which a GPU rounds the inputs of float32 products to TF32 if `precision` is "tf32", and never else.

    torch's own default rounds those of convolutions alone.
    """
    if device.type != "cuda":
        yield
        return
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrices.allow_tf32, convolutions.allow_tf32
    matrices.allow_tf32 = convolutions.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matrices.allow_tf32, convolutions.allow_tf32 = before
