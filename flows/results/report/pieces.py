"""The characters of a caption that each token of CLIP stands for, computed in a child process with torch.

The stored states of a caption do not hold them. Axes: L token slots, with start token, end token and padding.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.child import Child, ChildDied, ChildError, Send
from pipeline.errors import ItemError

LIMIT_SECONDS = 120.0  # reading the vocabulary takes a few seconds on a busy machine
MEMORY_BYTES = 4 << 30

Spans = NDArray[np.int32]


class Pieces:
    """The positions of tokens in captions; None for every caption if the tokenizer cannot be loaded."""

    def __init__(self) -> None:
        self._child = Child("flows.results.report.pieces:serve_spans", MEMORY_BYTES)
        self._known: dict[tuple[str, int], Spans | None] = {}

    def close(self) -> None:
        """End the child process."""
        self._child.kill()

    def spans(self, text: str, slots: int) -> Spans | None:
        """Characters (n, 2) of the tokens between start and end token, where a caption has `slots` slots.

        (0, 0) for a token whose text is not in the caption; None if the tokenizer cannot be loaded.
        """
        if (text, slots) not in self._known:
            self._known[text, slots] = self._ask(text, slots)
        return self._known[text, slots]

    def _ask(self, text: str, slots: int) -> Spans | None:
        try:
            ((_, arrays),) = self._child.ask({"text": text, "slots": slots}, LIMIT_SECONDS)
        except (ItemError, ChildError, ChildDied):
            return None
        return arrays["spans"]


def serve_spans(request: dict[str, Any], send: Send) -> None:
    """Entry of the child process: answers `{"text", "slots"}` with the positions of the text's tokens."""
    tokenizer = _tokenizer()
    kept = tokenizer.encode(request["text"])[: request["slots"] - 2]
    send({}, {"spans": located(request["text"], [tokenizer.decode([token]).strip() for token in kept])})


@cache
def _tokenizer() -> Any:
    from extractors.backbones.weights import import_open_clip

    return import_open_clip().SimpleTokenizer()


def located(text: str, pieces: list[str]) -> Spans:
    """The spans (n, 2) of the pieces in a text, one after the other.

    (0, 0) for a piece that is not in the text, for instance the rest of an HTML entity, which the tokenizer unescapes.
    """
    out, start, lower = np.zeros((len(pieces), 2), np.int32), 0, text.lower()
    for row, piece in zip(out, pieces, strict=True):
        at = lower.find(piece, start)
        if piece and at >= 0 and len(lower) == len(text):
            start = at + len(piece)
            row[:] = at, start
    return out
