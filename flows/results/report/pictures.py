"""Pictures of an item: frames of a video or views of a point cloud, up to the bytes that a page has for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.results.report import shapes
from flows.results.report.frames import LEFT_OUT, Frame, Frames, Moments, Strip, as_data_uri
from pipeline.store.segments import Damaged, Segment

POINTS = "points"  # name of the stage, and of its output, that clouds are drawn from


class Pictures:
    """Strips of items, until `most_bytes` of data URIs have been returned."""

    def __init__(self, most_bytes: int) -> None:
        self._frames, self._left = Frames(most_bytes), most_bytes
        self._known: dict[tuple[str, int], Strip] = {}

    def close(self) -> None:
        """End the process that decodes videos."""
        self._frames.close()

    def strip(self, item: Mapping[str, Any], moments: Moments = ()) -> Strip:
        """Pictures of an item from its "video", which "compress" (segment, row) made, or its "points" (segment, row).

        Never raises for damaged media: the strip then holds the reason instead of pictures.
        """
        if not item.get("points"):
            if damage := self.damage(item):
                return Strip(reason=damage)
            return self._frames.strip(item.get("video"), moments)
        row = (str(item["points"][0]), int(item["points"][1]))
        if row not in self._known:
            self._known[row] = _views(*row, item["key"])
        strip = self._known[row]
        size = sum(len(frame.source) for frame in strip.frames)
        if size > self._left:
            return Strip(reason=LEFT_OUT)
        self._left -= size
        return strip

    def damage(self, item: Mapping[str, Any]) -> str:
        """The reason why a stored video is damaged; "" if it is intact, or if the item has none."""
        if not item.get("compress") or item.get("video") is None:
            return ""
        segment, row = item["compress"]
        try:
            stored = Segment(Path(segment))
            stored.require(int(row), item["key"])
            stored.require_file(int(row), Path(item["video"]))
        except Damaged as error:
            return str(error)
        return ""


def _views(segment: str, row: int, key: str) -> Strip:
    """Views of a cloud from several sides, or the reason why it cannot be read."""
    try:
        stored = Segment(Path(segment))
        stored.require(row, key)
        stored.check(row)
        points = stored.rows(POINTS, row)
    except Damaged as error:
        return Strip(reason=str(error))
    side = shapes.SIDE_PIXELS
    frames = (Frame(as_data_uri(jpeg), side, side, degrees) for degrees, jpeg in shapes.views(points))
    return Strip(tuple(frames), views=True)
