"""DiDeMo: descriptions of moments of 5 s segments, as one paragraph a video or one by one.

{train,val,test}_data.json    [{"video", "description", "times": [[first segment, last segment]]}]
{train,val,test}_list.txt     the videos that count, a line each, where they are there
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from pipeline.corpus.importers.annotations import Annotation, Annotations, Wrong, paragraphs, shown, text
from pipeline.corpus.importers.published import Published, Splits, stem
from pipeline.corpus.manifest import SPLITS

PROTOCOLS = {"lists": "trained, validated and tested on the splits of its files"}
SEGMENT_SECONDS = 5
WINDOW = (0.0, 31.0)  # seconds, whatever the file's length: clips were cut to 30 s for annotation


def read(annotations: Annotations, protocol: str, unit: str) -> Splits:
    """The three splits of its files."""
    return {split: partial(_captions, annotations, split, unit) for split in SPLITS}


def _captions(annotations: Annotations, split: str, unit: str) -> list[Annotation]:

    def description(where: str, row: Any) -> list[Annotation]:
        said, video = text(row, "description"), stem(text(row, "video"))
        moment = () if unit == "paragraph" else _moment(row.get("times"))
        return [Annotation(video, said, where, *moment)]

    rows = annotations.items(annotations.need(f"{split}_data.json"))
    captions = annotations.gather(rows, description)
    listed = annotations.find(f"{split}_list.txt")
    if listed is not None:
        ids = {stem(video): where for video, where in annotations.names(listed).items()}
        captions = annotations.choose(ids, captions, whole=True)
    if unit == "paragraph":
        return paragraphs(captions, dict.fromkeys((c.video for c in captions), WINDOW[1]))
    return captions


def _moment(times: Any) -> tuple[float, float]:
    """The moment most annotators chose, of equals the first, in seconds. Raises Wrong."""
    pairs = times if isinstance(times, list) else []
    whole = [tuple(pair) for pair in pairs if isinstance(pair, list) and all(type(n) is int for n in pair)]
    if not whole or len(whole) != len(pairs) or any(len(pair) != 2 or min(pair) < 0 for pair in whole):
        raise Wrong(f"its times {shown(times)} are not pairs of segments")
    first, last = sorted(Counter(whole).most_common(1)[0][0])
    return float(first * SEGMENT_SECONDS), float((last + 1) * SEGMENT_SECONDS)


DIDEMO = Published("DiDeMo", PROTOCOLS, read, ("paragraph", "moments"), window=WINDOW)
