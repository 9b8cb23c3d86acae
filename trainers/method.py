"""The interface of a retrieval method for the engine and the evaluation: losses, encodings, scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor, nn

Batch = Mapping[str, Tensor]
"""Named tensors of one training step or of one block of items or captions."""

Encoded = dict[str, Tensor]
"""Encodings of items or captions: named tensors whose first axis counts them."""


class Method(nn.Module):
    """A retrieval model. A score is always higher-is-more-alike, rows texts, columns items.

    `work_bytes` is what `scores` may hold at once besides its arguments and its result, for a method whose pairs
    take memory; an evaluation sets it. `pairs_at_once` is the number of pairs that an evaluation gives to one call of
    `scores` at most, so that it takes about a second on a CPU; on a GPU it gives more.
    """

    work_bytes: int = 2**28
    pairs_at_once: int = 2**22

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Every scalar loss term with its weight applied; their sum is minimised. `epoch` counts from 0."""
        raise NotImplementedError

    def encode_texts(self, batch: Batch) -> Encoded:
        """The encodings of the captions of a batch, ready to be scored (normalisation happens here, once)."""
        raise NotImplementedError

    def encode_items(self, batch: Batch) -> Encoded:
        """The encodings of the items of a batch, ready to be scored (normalisation happens here, once)."""
        raise NotImplementedError

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        """Scores (Q, V) of Q encoded captions and V encoded items."""
        raise NotImplementedError

    def cheap_scores(self, texts: Encoded, items: Encoded) -> Tensor | None:
        """Cheap scores (Q, V), within [-1, 1], that choose which items are worth a true score; None: it has none."""
        return None

    def explain(self, texts: Encoded, items: Encoded) -> dict[str, Tensor]:
        """An explanation of the match of each pair, as named tensors (Q, V, ...); {} if the method gives none."""
        return {}


class MethodData(Protocol):
    """The packed inputs of a method, as the engine and the evaluation read them.

    Every batch is a function of (split, epoch, seed) alone, so that a resumed run sees what an
    uninterrupted one would have seen.
    """

    def train_batches(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches of one epoch of the split `train`, shuffled by (seed, epoch)."""
        ...

    def train_steps(self, world: int = 1) -> int:
        """Batches in an epoch."""
        ...

    def item_batches(self, split: str) -> Iterator[Batch]:
        """The gallery of a split, in gallery order."""
        ...

    def text_batches(self, split: str) -> Iterator[Batch]:
        """The queries of a split; each batch carries `index`, the position (Q,) of each in query order."""
        ...
