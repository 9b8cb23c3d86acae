"""Why a trained run is stale: in what its recorded stages differ from those of the experiment today."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flows.trained.runs import TrainedRun
from pipeline.errors import UserError
from pipeline.run import plan
from pipeline.store.fingerprint import METHOD_VERSION, differences

MOST_SHOWN = 3  # changes that a sentence names; it counts the others
LETTERS = 40  # of a value in a sentence


def why_stale(run: TrainedRun, recorded: plan.Stages, states: Mapping[str, plan.State]) -> str:
    """The changes since a run in one phrase; "" if none is known.

    For instance "compress.ffmpeg was '7.0' and is '99.1'". recorded: the stages of the run, pinned; states: those of
    the experiment today.
    """
    found = list(dict.fromkeys(_changes(recorded, states)))
    shown = "; ".join(found[:MOST_SHOWN])
    return shown + (f"; and {len(found) - MOST_SHOWN} more changes" if len(found) > MOST_SHOWN else "")


def _changes(recorded: plan.Stages, states: Mapping[str, plan.State]) -> Iterator[str]:
    for name, stage in recorded.items():
        if stage.pinned is None or not stage.pinned.components:
            continue
        if name not in states:
            yield f"{name} is no stage of the experiment any more"
            continue
        try:
            today = states[name].fingerprint.components
        except UserError as error:
            yield f"{name} cannot be made today ({error})"
            return
        for what, now, before in differences(as_recorded(today), stage.pinned.components):
            if what.startswith("needs."):
                need = what.removeprefix("needs.")
                if now is None or before is None:
                    yield f"{name} {'no longer reads' if now is None else 'reads'} {need}"
            else:
                yield _change(name, stage.method or name, what, now, before)


def as_recorded(components: Mapping[str, Any]) -> Mapping[str, Any]:
    """Components as the store's JSON gives them back: tuples have become lists."""
    plain: Mapping[str, Any] = json.loads(json.dumps(components))
    return plain


def _change(stage: str, owner: str, what: str, now: Any, before: Any) -> str:
    """One difference in words; owner: the method or extractor whose code the stage runs."""
    if what.startswith("corpus."):
        return f"the split {what.removeprefix('corpus.')!r} has changed"
    if what == "left_out":
        return "other items or captions are left out because they failed"
    if what == METHOD_VERSION:
        return f"the code of {owner} was version {before} and is {now}"
    if what == "version":
        return f"the code of {stage} was version {before} and is {now}"
    return f"{stage}.{what.removeprefix('params.')} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LETTERS else text[:LETTERS] + "..."
