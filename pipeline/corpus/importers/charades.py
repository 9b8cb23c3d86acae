"""Charades-STA: a moment a line, `VIDEO start end##sentence`, in charades_sta_{train,test}.txt."""

from __future__ import annotations

from functools import partial

from pipeline.corpus.importers.annotations import Annotation, Annotations, Wrong, window
from pipeline.corpus.importers.published import Published, Splits

PROTOCOLS = {"sta": "trained on charades_sta_train, tested on charades_sta_test, every moment a pair"}


def read(annotations: Annotations, protocol: str, unit: str) -> Splits:
    """Its two files; it has no validation split."""
    return {split: partial(_captions, annotations, split) for split in ("train", "test")}


def _captions(annotations: Annotations, split: str) -> list[Annotation]:
    return annotations.gather(annotations.lines(annotations.need(f"*charades_sta_{split}.txt")), _moment)


def _moment(where: str, line: str) -> list[Annotation]:
    place, mark, sentence = line.partition("##")
    words = place.split()
    if not mark or len(words) != 3:
        raise Wrong(f"{line[:60]!r} is not of the form 'VIDEO start end##sentence'")
    if not sentence.strip():
        raise Wrong("the sentence is empty")
    return [Annotation(words[0], sentence.strip(), where, *window(words[1:]))]


CHARADES = Published("Charades-STA", PROTOCOLS, read)
