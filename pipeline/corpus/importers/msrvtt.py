"""MSR-VTT: the 9k and 7k training lists with JSFUSION's test pairs, or the full split of its own.

MSRVTT_train.9k.csv, MSRVTT_train.7k.csv    a column video_id
MSRVTT_JSFUSION_test.csv                    columns key, vid_key, video_id, sentence
MSRVTT_data.json                            {"videos": [{video_id, split}], "sentences": [{video_id, caption}]}
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from pipeline.corpus.importers.annotations import Annotation, Annotations, Wrong, name, text
from pipeline.corpus.importers.published import Published, Splits

JSFUSION = "every caption a pair; tested on JSFUSION's pairs"
PROTOCOLS = {
    "1k-A": f"trained on the 9k list, {JSFUSION}",
    "9k": f"trained on the 9k list, {JSFUSION}",
    "7k": f"trained on the 7k list, {JSFUSION}",
    "full": "trained, validated and tested on the splits of MSRVTT_data.json with all captions",
}
SPLIT_NAMES = {"train": "train", "val": "validate", "test": "test"}  # ours: theirs


def read(annotations: Annotations, protocol: str, unit: str) -> Splits:
    """The splits of a protocol; only `full` has validation videos of its own."""
    captions = cache(partial(_captions, annotations))
    if protocol == "full":
        ids = cache(partial(_own_splits, annotations))

        def own(split: str) -> list[Annotation]:
            return annotations.choose(ids()[split], captions())

        return {split: partial(own, split) for split in SPLIT_NAMES}
    listed = f"MSRVTT_train.{'7k' if protocol == '7k' else '9k'}.csv"

    def train() -> list[Annotation]:
        ids = annotations.column(annotations.need(listed), "video_id")
        return annotations.choose(ids, captions())

    return {"train": train, "test": partial(_pairs, annotations)}


def _captions(annotations: Annotations) -> list[Annotation]:
    """Every sentence of MSRVTT_data.json, in file order."""

    def caption(where: str, row: Any) -> list[Annotation]:
        said = text(row, "caption")
        return [Annotation(text(row, "video_id"), said, where)]

    return annotations.gather(annotations.items(annotations.need("MSRVTT_data.json"), "sentences"), caption)


def _own_splits(annotations: Annotations) -> dict[str, dict[str, str]]:
    """The videos of each split, each with where it stands."""
    out: dict[str, dict[str, str]] = {split: {} for split in SPLIT_NAMES}
    ours = {theirs: split for split, theirs in SPLIT_NAMES.items()}

    def video(where: str, row: Any) -> list[Annotation]:
        video, split = name(text(row, "video_id")), text(row, "split")
        if split not in ours:
            raise Wrong(f"{video} has the split {split!r}; possible: {', '.join(ours)}")
        out[ours[split]].setdefault(video, where)
        return []

    annotations.gather(annotations.items(annotations.need("MSRVTT_data.json"), "videos"), video)
    return out


def _pairs(annotations: Annotations) -> list[Annotation]:
    """JSFUSION's test pairs, a sentence a row."""
    path = annotations.need("MSRVTT_JSFUSION_test.csv")
    rows = annotations.table(path, "video_id", "sentence")
    return annotations.gather(
        rows, lambda where, row: [Annotation(text(row, "video_id"), text(row, "sentence"), where)]
    )


MSRVTT = Published("MSR-VTT", PROTOCOLS, read)
