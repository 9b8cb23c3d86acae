"""One stage on files or sentences of one's own, without a corpus or an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from crossreel.settings import Settings, as_sets
from flows.console import StageDisplay
from flows.extracting import extract_given
from flows.reading import Features
from flows.troubles import in_sentences
from pipeline.store.segments import Array


@overload
def extract(
    stage: str, what: str | Path, *, store: str | Path | None = None, set: Settings = (), quiet: bool = True,
    **settings: Any,
) -> dict[str, Array]: ...  # fmt: skip


@overload
def extract(
    stage: str, what: Sequence[str | Path], *, store: str | Path | None = None, set: Settings = (),
    quiet: bool = True, **settings: Any,
) -> Features: ...  # fmt: skip


@in_sentences()
def extract(
    stage: str, what: str | Path | Sequence[str | Path], *, store: str | Path | None = None, set: Settings = (),
    quiet: bool = True, **settings: Any,
) -> dict[str, Array] | Features:  # fmt: skip
    """The outputs of a stage for a media file, or a sentence where the stage reads captions: arrays by name.

    Of a list of files, or of sentences, the Features: arrays by file or sentence, in order, and those that failed with
    their reasons. settings: those of the stage, `model="ViT-B-16"`. set: further settings, of stages that come before
    (`{"extractors.compress.fps": 6}`) or of the work (`{"run.device": "cpu"}`). store: a folder that keeps what is
    made, so that the next call finds it; left out, nothing is kept. Raises Error for a setting that is not possible,
    and ItemError with the reason if a single file fails.
    """
    single = isinstance(what, str | Path)
    given = [str(what)] if isinstance(what, str | Path) else [str(one) for one in what]
    with StageDisplay(quiet=quiet) as display:
        found = extract_given(
            stage, given, settings, as_sets(set), None if store is None else Path(store), display
        )
    # copies: the views would be of files that are gone with the temporary store
    return {name: np.array(array) for name, array in found[given[0]].items()} if single else found
