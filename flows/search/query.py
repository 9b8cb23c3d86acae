"""The allowed input of a search: sentences, files and numbers of results within bounds."""

from __future__ import annotations

import unicodedata
from numbers import Integral
from pathlib import Path

from pipeline.errors import UserError

MOST_CHARACTERS = 1000
MOST_RESULTS = 1000
UNWRITTEN = {"Cc": "a control character", "Cs": "half a character"}  # Unicode's categories


def require_text(text: str) -> str:
    """The sentence without the space around it. Raises UserError for one that nobody would search for."""
    if not isinstance(text, str):
        raise UserError(f"the query is {text!r}; give a sentence to search for")
    text = text.strip()
    if not text:
        raise UserError("the query is empty; give a sentence to search for")
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"the query has {len(text)} characters; at most {MOST_CHARACTERS} are possible")
    for position, character in enumerate(text):
        if (category := unicodedata.category(character)) in UNWRITTEN:
            raise UserError(
                f"the query holds {UNWRITTEN[category]} ({character!a}) at position {position + 1}; "
                "give one line of text"
            )
    return text


def require_top(top: int) -> int:
    """The number of results. Raises UserError for one that is not possible."""
    if isinstance(top, bool) or not isinstance(top, Integral) or not 1 <= top <= MOST_RESULTS:
        raise UserError(f"{top} results are not possible; from 1 to {MOST_RESULTS} are")
    return int(top)


def require_media(path: Path) -> Path:
    """A file that is there. Raises UserError otherwise."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a media file to search with")
    return path
