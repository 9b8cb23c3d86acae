"""Precision of a frozen network's computation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""auto: float16 on a GPU, as CLIP's authors compute, float32 on a CPU."""


def autocast(precision: Precision, device: torch.device) -> Any:
    """The context in which a network computes on a device."""
    import torch

    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, kinds.get(precision, torch.bfloat16), enabled=precision in kinds)
