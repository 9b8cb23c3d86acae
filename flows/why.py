"""Explanation why an artifact exists or is missing: its fingerprint's components against the nearest in the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.project import Project
from pipeline.errors import UserError, nearest
from pipeline.run import plan
from pipeline.store.fingerprint import differences

Known = Mapping[str, tuple[str, Mapping[str, Any]]]


def explain(project: Project, stage: str, item: str) -> Iterator[str]:
    """Lines with hit or miss for a stage and those it needs, and for a miss the component that differs."""
    states = project.survey()
    state = states[stage]
    key, name = _unit(project, state, item)
    fp = state.fingerprint.hex
    label = stage if key == plan.WHOLE else f"{stage} of {name}"
    if key in state.killed:
        failure = state.killed[key]
        yield f"{label}: killed {failure.attempts} times, the next run tries it again: {failure.reason}"
    elif key in state.failed:
        failure = state.failed[key]
        yield f"{label}: failed {failure.attempts} times: {failure.reason}"
    elif key in state.blocked:
        yield f"{label}: left out, because a stage it needs failed on it"
        for need in state.stage.needs:
            yield from (
                line for line in explain(project, need, item) if ": failed" in line or ": killed" in line
            )
    elif key not in state.missing:
        yield f"{label}: hit, fingerprint {fp}"
        yield from _components(state.fingerprint.components, project.store.index.fingerprints())
    else:
        yield f"{label}: miss, fingerprint {fp}"
        yield from _miss(project, states, stage, key)


def _unit(project: Project, state: plan.State, item: str) -> tuple[str, str]:
    """The key and name of the unit that the user names. Raises UserError with the nearest id."""
    if state.stage.over == "corpus":
        return plan.WHOLE, plan.WHOLE
    contents = project.contents_of(state)
    names = contents.names(state.stage.over)
    if item not in names:
        item = _by_text_or_file(project, state, item)
    if item in project.contents.unreadable:
        raise UserError(f"{item}: {project.contents.unreadable[item]}")
    if item not in names:
        of_kind = (
            f" of the kind {state.kind}, which {state.stage.name} processes" if contents.corpus.part else ""
        )
        close = nearest(item, names) if len(names) < 50 else nearest(item, names).split("possible")[0]
        raise UserError(
            f"no item {item!r} among the {state.stage.over} of {contents.corpus.path}{of_kind}; {close}"
        )
    return names[item], item


def _by_text_or_file(project: Project, state: plan.State, item: str) -> str:
    """The id of the caption with this text, or of the item whose media file has this name; else the argument itself."""
    for entry in project.contents.corpus.items:
        if state.stage.over == "captions":
            for caption in entry.captions:
                if caption.text == item:
                    return caption.id
        elif entry.media and Path(entry.media).name == item:
            return entry.id
    return item


def _components(components: Mapping[str, Any], known: Known) -> Iterator[str]:
    for name, value in components.items():
        if name == "needs":
            for need, fp in value.items():
                yield f"  needs {need}: {fp}"
        elif name != "stage":
            yield f"  {name}: {value}"


def _miss(project: Project, states: Mapping[str, plan.State], stage: str, key: str) -> Iterator[str]:
    """The artifact of this unit in the store with the nearest fingerprint, and the components that differ."""
    state = states[stage]
    known = project.store.index.fingerprints()
    if key in project.store.index.places(state.fingerprint.hex):
        yield "  it was made, but its segment or file is gone or was cut short"
        return
    waiting = [need for need in state.stage.needs if key in states[need].missing]
    if waiting:
        yield f"  it waits for {', '.join(waiting)}"
    others = [fp for fp, (name, _) in known.items() if name == stage and fp != state.fingerprint.hex]
    having = [fp for fp in others if _has(project, state, fp, key)]
    if not having:
        new = "was never made in this store" if not others else "is new: no other settings made it either"
        yield f"  it {new}"
        return
    mine = state.fingerprint.components
    best = min(having, key=lambda fp: len(list(differences(mine, known[fp][1]))))
    yield f"  nearest: {best}, which differs in"
    yield from _differences(mine, known[best][1], known, states, "    ")


def _has(project: Project, state: plan.State, fp: str, key: str) -> bool:
    if state.stage.over == "corpus":
        return project.store.has_run(state.stage.name, fp)
    return key in project.store.index.places(fp)


def _differences(
    mine: Mapping[str, Any],
    other: Mapping[str, Any],
    known: Known,
    states: Mapping[str, plan.State],
    indent: str,
) -> Iterator[str]:
    for name, now, before in differences(mine, other):
        if name.startswith("needs.") and now and before:
            need = name.removeprefix("needs.")
            yield f"{indent}{need}, upstream, which differs in"
            theirs = known.get(before, ("", {}))[1]
            yield from _differences(states[need].fingerprint.components, theirs, known, states, indent + "  ")
        else:
            yield f"{indent}{name}: {now!r} now, {before!r} then"
