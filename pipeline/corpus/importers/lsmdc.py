"""LSMDC: clips of films with a sentence each, in the challenge's tab-separated lists without a header.

LSMDC16_annos_training.csv, LSMDC16_annos_val.csv    key, start, end (aligned, then extracted), sentence
LSMDC16_challenge_1000_publictect.csv                the same of the 1,000 test clips of the retrieval challenge

The times are those of the film that a clip was cut from, so they are no moments of the clip. A clip is
FILM/KEY.avi; the key itself ends in times with points.
"""

from __future__ import annotations

import re
from functools import partial

from pipeline.corpus.importers.annotations import Annotation, Annotations, Wrong, name, shown
from pipeline.corpus.importers.published import Published, Splits

PROTOCOLS = {
    "challenge": "trained and validated on the annotated clips, tested on the challenge's 1,000 clips"
}
FILES = {
    "train": ("LSMDC16_annos_training.csv", "*annos_training.[ct]sv"),
    "val": ("LSMDC16_annos_val.csv", "*annos_val.[ct]sv"),
    "test": ("LSMDC16_challenge_1000_publictect.csv", "*challenge_1000*.[ct]sv"),
}
LEAST_CELLS = 4  # key, start, end, sentence; the published lists have two starts and two ends
TIME = re.compile(r"\d+(?:[.:]\d+)*", re.ASCII)  # 00.01.35.200 or 95.2


def read(annotations: Annotations, protocol: str, unit: str) -> Splits:
    """The three splits of its lists."""
    return {split: partial(_captions, annotations, split) for split in FILES}


def _captions(annotations: Annotations, split: str) -> list[Annotation]:
    return annotations.gather(annotations.lines(annotations.need(*FILES[split])), _clip)


def _clip(where: str, line: str) -> list[Annotation]:
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) < LEAST_CELLS:
        raise Wrong(
            f"{shown(line)} has {len(cells)} cells between tabs; a key, times and a sentence are needed"
        )
    key, *times, sentence = cells
    if wrong := next((time for time in times if not TIME.fullmatch(time)), None):
        raise Wrong(f"{wrong!r} is not a time")
    if TIME.fullmatch(
        sentence
    ):  # the end of a line is stripped, so that an empty sentence leaves a time there
        raise Wrong("the sentence is empty")
    return [Annotation(name(key), sentence, where)]


LSMDC = Published("LSMDC", PROTOCOLS, read)
