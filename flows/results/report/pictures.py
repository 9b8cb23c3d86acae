"""What is shown of an item: frames of a video, or views of a point cloud, until a page's share is used up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.results.report import shapes
from flows.results.report.frames import LEFT_OUT, Frame, Frames, Moments, Strip, as_data_uri
from pipeline.store.segments import Damaged, Segment

POINTS = "points"  # the stage and its output that clouds are drawn from


class Pictures:
    """Strips of items, until `most_bytes` of data URIs were handed out."""

    def __init__(self, most_bytes: int) -> None:
        self._frames, self._left = Frames(most_bytes), most_bytes
        self._known: dict[tuple[str, int], Strip] = {}

    def close(self) -> None:
        """End what decodes videos."""
        self._frames.close()

    def strip(self, item: Mapping[str, Any], moments: Moments = ()) -> Strip:
        """Pictures of an item from its "video", which "compress" (segment, row) made, or its "points" (segment, row).

        Never raises for a bad one: the strip then has the reason.
        """
        if not item.get("points"):
            if damage := self._video_damage(item):
                return Strip(reason=damage)
            return self._frames.strip(item.get("video"), moments)
        where = (str(item["points"][0]), int(item["points"][1]))
        if where not in self._known:
            self._known[where] = _views(*where, item["key"])
        strip = self._known[where]
        size = sum(len(frame.source) for frame in strip.frames)
        if size > self._left:
            return Strip(reason=LEFT_OUT)
        self._left -= size
        return strip

    def _video_damage(self, item: Mapping[str, Any]) -> str:
        """Why the video of an item is not the one that was made of it; "" where it is, or where there is none."""
        if not item.get("compress") or item.get("video") is None:
            return ""
        segment, row = item["compress"]
        try:
            found = Segment(Path(segment))
            found.require(int(row), item["key"])
            found.require_file(int(row), Path(item["video"]))
        except Damaged as error:
            return str(error)
        return ""


def _views(segment: str, row: int, key: str) -> Strip:
    """A cloud from around it."""
    try:
        found = Segment(Path(segment))
        found.require(row, key)
        found.check(row)
        points = found.rows(POINTS, row)
    except Damaged as error:
        return Strip(reason=str(error))
    side = shapes.SIDE_PIXELS
    frames = (Frame(as_data_uri(jpeg), side, side, degrees) for degrees, jpeg in shapes.views(points))
    return Strip(tuple(frames), views=True)
