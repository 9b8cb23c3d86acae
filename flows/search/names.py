"""Ids, captions, moments and seconds of the positions in an index, read from the corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from flows.project import Project
from flows.search.hits import CaptionHit, Hit, Moment
from pipeline.corpus.manifest import Caption, Item
from pipeline.errors import UserError, nearest
from pipeline.run import plan
from pipeline.store.store import FeatureReader


class Names:
    """The items and captions of an index, by digest, by position, and as the manifest has them today.

    An index holds only digests, so that it stays valid when a corpus is renamed or moved.
    """

    def __init__(
        self,
        project: Project,
        split: str,
        contents: Mapping[str, Any],
        times: FeatureReader,
        captioned: bool = True,
    ) -> None:
        """contents: the digests that the index holds; times: the times of the frames of each video.

        captioned: False if the captions are stand-ins, which are not shown.
        """
        self.split, self._times, self._captioned = split, times, captioned
        self.items = {key: place for place, key in enumerate(contents["items"])}
        self.captions: dict[str, int] = {}
        for place, key in enumerate(contents["captions"]):
            self.captions.setdefault(key, place)
        self._item_keys, self._caption_keys = contents["items"], contents["captions"]
        self._caption_item, self._texts = contents["caption_item"], contents["texts"]
        items_by_key = project.contents.items()
        self._items = [items_by_key.get(key) or _gone(key, split) for key in self._item_keys]
        self._place_of_id = {
            name: self.items[key]
            for name, key in project.contents.names("items").items()
            if key in self.items
        }
        self._positives: dict[str, list[int]] = {}
        # One text may describe several items: with its item it is one caption.
        self._captions: dict[tuple[str, str], Caption] = {}
        self._ids: dict[str, str] = {}
        for item_key, _, caption in project.contents.queries(split):
            self._captions.setdefault((caption.digest, item_key), caption)
            self._ids[caption.id] = caption.digest
            also = (self._place_of_id.get(item) for item in caption.also)
            places = [place for place in (self.items.get(item_key), *also) if place is not None]
            self._positives.setdefault(caption.digest, []).extend(places)

    def caption_place(self, caption: str) -> int:
        """The position of the caption with this id. Raises UserError if the index has none."""
        if caption not in self._ids:
            raise UserError(
                f"no caption {caption!r} in the split {self.split!r}; {nearest(caption, self._ids)}"
            )
        if self._ids[caption] not in self.captions:
            raise UserError(
                f"the caption {caption!r} is not in the index: it failed (`crossreel status` says why), or is newer"
            )
        return self.captions[self._ids[caption]]

    @property
    def item_ids(self) -> list[str]:
        """The ids of the items that the index has."""
        return [*self._place_of_id]

    def item_place(self, item: str) -> int | None:
        """The position of the item with this id or digest; None if the index has none."""
        return self._place_of_id.get(item, self.items.get(item))

    def positives(self, caption: str) -> list[int]:
        """The positions of the items that a caption with this digest describes; [] if the split has no such caption."""
        return list(dict.fromkeys(self._positives.get(caption, [])))

    def captions_of(self, item: int) -> list[int]:
        """The positions of the captions that the item at a position is the own item of, in query order."""
        return [place for place, owner in enumerate(self._caption_item) if owner == item]

    def hits(self, results: Mapping[str, NDArray[Any]]) -> list[Hit]:
        """The items at the positions (K,) of `results`, with their best moments (K, 2) if the method gives them.

        `place` (K,), if given, holds their places in the ranking; else they are the first ones.
        """
        out = []
        places = results["place"].tolist() if "place" in results else range(1, len(results["position"]) + 1)
        for number, position in enumerate(results["position"].tolist()):
            item, key = self._items[position], self._item_keys[position]
            moment = self._seconds(key, results["moment"][number]) if "moment" in results else None
            texts = tuple(caption.text for caption in item.captions if self._captioned)
            out.append(Hit(places[number], item.id, key, float(results["score"][number]), texts, moment))
        return out

    def caption_hits(self, results: Mapping[str, NDArray[Any]]) -> list[CaptionHit]:
        """The captions at the positions (K,) of `results`, each with its item."""
        out = []
        for number, position in enumerate(results["position"].tolist()):
            key, owner = self._caption_keys[position], self._caption_item[position]
            item, item_key = self._items[owner], self._item_keys[owner]
            caption = self._captions.get((key, item_key)) or Caption(key, self._texts[position])
            moment = None
            if caption.start is not None and caption.end is not None:
                moment = caption.start, caption.end
            score = float(results["score"][number])
            place = int(results["place"][number]) if "place" in results else number + 1
            out.append(CaptionHit(place, caption.id, caption.text, key, score, item.id, item_key, moment))
        return out

    def _seconds(self, key: str, shares: NDArray[Any]) -> Moment | None:
        """Seconds from shares (2,) of an item's length; None if the times of its frames are not known."""
        if key not in self._times:
            return None
        times = self._times.rows(key, "time")
        if len(times) < 2:
            return None
        seconds = float(
            times[-1] + (times[-1] - times[0]) / (len(times) - 1)
        )  # the last frame lasts as long as the others
        return round(float(shares[0]) * seconds, 3), round(float(shares[1]) * seconds, 3)


def _gone(key: str, split: str) -> Item:
    """What stands for an item that the corpus no longer has: it is known by its digest, and has no captions."""
    return Item(key, split)


def frame_times(project: Project, states: Mapping[str, plan.State]) -> FeatureReader:
    """The times of the frames of each video; empty if the store has no compressed videos."""
    if "compress" not in states:
        return FeatureReader({})
    return project.store.reader("compress", states["compress"].fingerprint.hex)
