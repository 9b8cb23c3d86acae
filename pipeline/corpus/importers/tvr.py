"""TVR: a moment a line of tvr_{train,val,test_public}_release.jsonl: {"vid_name", "ts", "desc", "desc_id"}."""

from __future__ import annotations

from functools import partial
from typing import Any

from pipeline.corpus.importers.annotations import Annotation, Annotations, name, text, window
from pipeline.corpus.importers.published import Published, Splits

PROTOCOLS = {
    "prvr": "trained on train, tested on val, as in partially relevant video retrieval",
    "release": "trained, validated and tested on the splits of its files",
}
SOURCES = {
    "prvr": {"train": "train", "test": "val"},
    "release": {"train": "train", "val": "val", "test": "test_public"},
}


def read(annotations: Annotations, protocol: str, unit: str) -> Splits:
    """The splits of a protocol from the files they are taken from."""
    return {split: partial(_captions, annotations, file) for split, file in SOURCES[protocol].items()}


def _captions(annotations: Annotations, file: str) -> list[Annotation]:
    path = annotations.need(f"*tvr_{file}_release.jsonl")
    return annotations.gather(annotations.json_lines(path), _moment)


def _moment(where: str, row: Any) -> list[Annotation]:
    """A caption; those of the public test file have no times."""
    start, end = window(row["ts"]) if row.get("ts") is not None else (None, None)
    own = name(row["desc_id"]) if row.get("desc_id") is not None else ""
    return [Annotation(text(row, "vid_name"), text(row, "desc"), where, start, end, own)]


TVR = Published("TVR", PROTOCOLS, read)
