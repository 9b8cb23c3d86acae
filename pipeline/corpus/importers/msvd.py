"""MSVD: three lists of video ids, and all captions as token lists in a pickle.

{train,val,test}_list.txt    an id a line
raw-captions.pkl or .json    id -> [[token, token, ...], ...]
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from pipeline.corpus.importers.annotations import Annotation, Annotations, Row, Wrong, name, read_bytes
from pipeline.corpus.importers.published import Published, Splits
from pipeline.corpus.manifest import SPLITS
from pipeline.errors import UserError

PROTOCOLS = {"lists": "trained, validated and tested on the videos of its lists, every caption a pair"}
ENCODINGS = ("utf-8", "latin-1")  # of texts that Python 2 pickled


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, texts and numbers; a pickle that names anything else could run it, and is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every global."""
        raise pickle.UnpicklingError(f"it names {module}.{name}; only lists, tables and texts are read")


def read(annotations: Annotations, protocol: str, unit: str) -> Splits:
    """The videos of each list with all their captions."""
    captions = cache(partial(_captions, annotations))

    def split_of(split: str) -> list[Annotation]:
        ids = annotations.names(annotations.need(f"{split}_list.txt"))
        return annotations.choose(ids, captions())

    return {split: partial(split_of, split) for split in SPLITS}


def _captions(annotations: Annotations) -> list[Annotation]:
    path = annotations.need("raw-captions.pkl", "raw-captions.json")
    plain = path.name.removesuffix(".gz").endswith(".json")
    rows = annotations.members(path) if plain else _members(path)
    return annotations.gather(_each(rows, annotations), _caption)


def _each(rows: list[Row], annotations: Annotations) -> Iterator[Row]:
    """Every caption of every video with where it stands."""
    for where, (video, captions) in rows:
        if isinstance(captions, (list, tuple)):
            yield from (
                (f"{where}, caption {n}", (video, caption)) for n, caption in enumerate(captions, start=1)
            )
        else:
            annotations.left_out.append(f"{where}: it has no list of captions")


def _caption(where: str, row: Any) -> list[Annotation]:
    """A caption is its tokens joined by a space; a text is taken as it is."""
    video, tokens = row
    words = [tokens] if isinstance(tokens, str) else tokens
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise Wrong("not a list of words")
    said = " ".join(words).strip()
    if not said:
        raise Wrong("the caption is empty")
    return [Annotation(name(video), said, where)]


def _members(path: Path) -> list[Row]:
    """The members of a pickled table as (id, captions)."""
    value = read_plain_pickle(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, a table of captions by video id is needed")
    return [(f"{path.name}, {video}", (video, captions)) for video, captions in value.items()]


def read_plain_pickle(path: Path) -> Any:
    """What a pickle of plain containers and texts holds. Raises UserError for any other; nothing of it is run."""
    data = read_bytes(path)
    for encoding in ENCODINGS:
        try:
            return PlainUnpickler(io.BytesIO(data), encoding=encoding).load()
        except UnicodeDecodeError:
            continue
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
                OverflowError, MemoryError, RecursionError) as error:  # fmt: skip
            raise UserError(
                f"{path} is not a pickle of plain captions: {error or type(error).__name__}"
            ) from None
    raise UserError(f"{path} is not a pickle of plain captions: its texts are not UTF-8")


MSVD = Published("MSVD", PROTOCOLS, read)
