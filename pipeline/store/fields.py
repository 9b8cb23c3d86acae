"""What a stage stores of each item or caption: named arrays of a dtype and a shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One output: its dtype, and its shape, whose first axis is free and whose None axes the model fixes."""

    dtype: str
    shape: tuple[int | None, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is one item's output."""
        wanted = self.shape
        return len(shape) == len(wanted) and all(w in (None, s) for w, s in zip(wanted, shape, strict=True))
