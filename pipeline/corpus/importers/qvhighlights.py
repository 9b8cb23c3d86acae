"""QVHighlights: a query a line of highlight_{train,val,test}_release.jsonl: {"vid", "query", "relevant_windows"}."""

from __future__ import annotations

from functools import partial
from typing import Any

from pipeline.corpus.importers.annotations import Annotation, Annotations, Wrong, name, shown, text, window
from pipeline.corpus.importers.published import Published, Splits

PROTOCOLS = {
    "val": "trained on train, tested on val",
    "release": "trained, validated and tested on the splits of its files",
}
SOURCES = {"val": {"train": "train", "test": "val"}, "release": {s: s for s in ("train", "val", "test")}}


def read(annotations: Annotations, protocol: str, unit: str) -> Splits:
    """The splits of a protocol from the files they are taken from."""
    return {split: partial(_captions, annotations, file) for split, file in SOURCES[protocol].items()}


def _captions(annotations: Annotations, file: str) -> list[Annotation]:
    path = annotations.need(f"*highlight_{file}_release.jsonl")
    return annotations.gather(annotations.json_lines(path), _query)


def _query(where: str, row: Any) -> list[Annotation]:
    """A query, from the start of its first window to the end of its last; those of the test file have none."""
    own = name(row["qid"]) if row.get("qid") is not None else ""
    start, end = _windows(row)
    return [Annotation(text(row, "vid"), text(row, "query"), where, start, end, own)]


def _windows(row: Any) -> tuple[float, float] | tuple[None, None]:
    given = row.get("relevant_windows")
    if given is None:
        return None, None
    if not isinstance(given, list) or not given:
        raise Wrong(f"its relevant_windows {shown(given)} are not a list of windows")
    windows = [window(pair) for pair in given]
    return min(min(pair) for pair in windows), max(max(pair) for pair in windows)


QVHIGHLIGHTS = Published("QVHighlights", PROTOCOLS, read)
