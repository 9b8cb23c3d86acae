"""ActivityNet Captions: sentences with their moments, as one paragraph a video or one by one.

train.json, val_1.json, val_2.json        id -> {"duration", "timestamps": [[start, end]], "sentences"}
train_ids.json, val_ids.json              the ids that count, where they are there
ActivityNet_{train,val,test}.json         the same under other names: val is val_1, test is val_2
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from pipeline.corpus.importers.annotations import (
    Annotation,
    Annotations,
    Wrong,
    name,
    paragraphs,
    seconds,
    text,
    window,
)
from pipeline.corpus.importers.published import Published, Splits

FILES = {
    "train": ("train.json", "ActivityNet_train.json"),
    "val_1": ("val_1.json", "ActivityNet_val.json"),
    "val_2": ("val_2.json", "ActivityNet_test.json"),
}
LISTS = {"train": "train_ids.json", "val_1": "val_ids.json"}
PROTOCOLS = {
    "val_1": "trained on train, tested on val_1",
    "val_2": "trained on train, validated on val_1, tested on val_2, which annotates the same videos again",
}
SOURCES = {
    "val_1": {"train": "train", "test": "val_1"},
    "val_2": {"train": "train", "val": "val_1", "test": "val_2"},
}


def read(annotations: Annotations, protocol: str, unit: str) -> Splits:
    """The splits of a protocol from the files they are taken from."""
    sources = SOURCES[protocol].items()
    return {split: partial(_captions, annotations, source, unit) for split, source in sources}


def _captions(annotations: Annotations, source: str, unit: str) -> list[Annotation]:
    rows = annotations.members(annotations.need(*FILES[source]))
    ends: dict[str, float] = {}

    def sentences(where: str, row: Any) -> list[Annotation]:
        video, entry = row
        said = entry.get("sentences") if isinstance(entry, dict) else None
        if not isinstance(said, list) or not said:
            raise Wrong("it has no list of sentences")
        places = [(f"{where}, sentence {n}", sentence) for n, sentence in enumerate(said, start=1)]
        if unit == "paragraph":
            ends[name(video)] = float(math.ceil(seconds(entry.get("duration"))))
            return annotations.gather(
                places, lambda at, sentence: [Annotation(name(video), _sentence(sentence), at)]
            )
        moments = entry.get("timestamps")
        if not isinstance(moments, list) or len(moments) != len(said):
            raise Wrong("it has not as many timestamps as sentences")
        pairs = [(at, pair) for (at, _), pair in zip(places, zip(said, moments, strict=True), strict=True)]
        return annotations.gather(
            pairs, lambda at, pair: [Annotation(name(video), _sentence(pair[0]), at, *window(pair[1]))]
        )

    captions = annotations.gather(rows, sentences)
    listed = annotations.find(LISTS[source]) if source in LISTS else None
    if listed is not None:
        captions = annotations.choose(annotations.entries(listed), captions, whole=True)
    return paragraphs(captions, ends) if unit == "paragraph" else captions


def _sentence(value: Any) -> str:
    return text({"sentence": value}, "sentence")


def _stems(video: str) -> tuple[str, str]:
    """The id as it is, and with `v_` where it has none, without it where it has."""
    return video, video.removeprefix("v_") if video.startswith("v_") else f"v_{video}"


ACTIVITYNET = Published("ActivityNet Captions", PROTOCOLS, read, ("paragraph", "moments"), stems=_stems)
