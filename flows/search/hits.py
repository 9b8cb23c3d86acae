"""What a search finds: items for a sentence, captions for an item. Plain data, no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Moment = tuple[float, float]
"""Start and end in seconds."""


@dataclass(frozen=True)
class Hit:
    """One item of a search's result, with its place in the ranking; 1 is best.

    key: the digest it is known by in the store. captions: the texts of all its captions. moment: the stretch of the
    item that matches best, None where the method does not know, or nobody knows how long the item is.
    """

    place: int
    item: str
    key: str
    score: float
    captions: tuple[str, ...]
    moment: Moment | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Scale:
    """All scores of one query: what a single score is to be compared with.

    counts: the number of items in each of equal stretches from the lowest to the highest score. median: of all scores.
    """

    low: float
    high: float
    median: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Ranked:
    """A part of the ranking of a sentence, with what its scores mean.

    hits: from the place that was asked for. right: the items that the sentence is a caption of, at whatever place;
    empty for a sentence that is no caption of the split. asked: the item that was asked for, at its place. gallery: the
    number of ranked items. following: the score behind the last of `hits`, None at the end of the gallery.
    """

    hits: tuple[Hit, ...]
    right: tuple[Hit, ...]
    asked: Hit | None
    gallery: int
    scale: Scale
    following: float | None = None


@dataclass(frozen=True)
class CaptionHit:
    """One caption of a search's result, with its place in the ranking (1 is best) and the item that it describes.

    key, item_key: the digests of both. moment: what the corpus says the caption describes, None for the whole item.
    """

    place: int
    caption: str
    text: str
    key: str
    score: float
    item: str
    item_key: str
    moment: Moment | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
