"""The declaration of an output that a stage stores for each item or caption: an array's dtype and shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One output: its dtype and shape. The first axis varies by item; the model decides other axes that are None."""

    dtype: str
    shape: tuple[int | None, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is one item's output."""
        declared = self.shape
        return len(shape) == len(declared) and all(
            d in (None, s) for d, s in zip(declared, shape, strict=True)
        )
