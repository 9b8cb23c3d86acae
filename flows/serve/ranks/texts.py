"""Many short texts in one array of bytes, so that tens of thousands of captions cost no Python objects."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

END = b"\n"  # stands behind each text; a caption has no line break, so no match reaches into the next text


class Texts:
    """Texts by position. `texts[3]` is the fourth one; a line break in a text becomes a space."""

    def __init__(self, texts: Iterable[str]) -> None:
        plain = [text.replace("\n", " ") for text in texts]
        self._bytes, self._offsets = _joined(plain)
        self._lower, self._lower_offsets = _joined([text.casefold() for text in plain])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, position: int) -> str:
        start, end = self._offsets[position], self._offsets[position + 1] - len(END)
        return self._bytes[start:end].decode()

    def containing(self, word: str) -> NDArray[np.bool_]:
        """Whether each text holds `word`, in upper or lower case, (n,)."""
        found = np.zeros(len(self), np.bool_)
        wanted = word.casefold().encode()
        at = self._lower.find(wanted)
        while at >= 0:
            text = int(np.searchsorted(self._lower_offsets, at, "right")) - 1
            if text >= len(self):
                break
            found[text] = True
            at = self._lower.find(wanted, int(self._lower_offsets[text + 1]))
        return found

    def word_counts(self) -> NDArray[np.int32]:
        """Number of words of each text, (n,)."""
        return np.array([len(self[position].split()) for position in range(len(self))], np.int32)


def _joined(texts: list[str]) -> tuple[bytes, NDArray[np.int64]]:
    encoded = [text.encode(errors="replace") + END for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return b"".join(encoded), offsets
