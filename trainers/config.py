"""Settings that every method has: its training recipe. Importing a declaration imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.settings import Params


class Recipe(Params):
    """How a method is trained; a method's own config narrows the defaults to its published ones."""

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(128, ge=1)  # items a step, over all processes
    accumulate: int = Field(1, ge=1)  # steps whose gradients are added before an update
    lr: float = Field(1e-4, gt=0)
    seed: int = Field(0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, master weights stay float32
    patience: int = Field(10, ge=0)  # epochs without a better validation figure before stopping
