"""Pure functions over a set of stages: order, ancestors, what is done, what is missing, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption
from pipeline.errors import UserError, nearest
from pipeline.memory import no_collection
from pipeline.run.stage import Digests, Stage
from pipeline.store.fingerprint import Fingerprint, digest_of, digest_of_lists
from pipeline.store.index import Failure
from pipeline.store.places import Place, Units
from pipeline.store.store import Store

Stages = Mapping[str, Stage[Any]]
WHOLE = "corpus"  # the one unit of a stage over the whole corpus


def order(stages: Stages) -> list[str]:
    """Names of the stages, each after what it needs. Raises ValueError for a cycle or an unknown need."""
    out: list[str] = []
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in out:
            return
        if name in visiting:
            raise ValueError(f"the stage {name} needs itself")
        if name not in stages:
            raise ValueError(f"no stage {name}; {nearest(name, stages)}")
        visiting.add(name)
        for need in stages[name].needs:
            visit(need)
        out.append(name)

    for name in stages:
        visit(name)
    return out


def ancestors(stages: Stages, names: Iterable[str]) -> set[str]:
    """The named stages and everything they need."""
    out: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in out:
            out.add(name)
            todo.extend(stages[name].needs)
    return out


def descendants(stages: Stages, names: Iterable[str]) -> set[str]:
    """The named stages and everything that needs them."""
    out = set(names)
    for name in order(stages):
        if out.intersection(stages[name].needs):
            out.add(name)
    return out


def companions(stages: Stages, name: str) -> list[str]:
    """The other stages that can share a pass over the items with a stage, because they read the same."""
    stage = stages[name]
    return [
        other
        for other, s in stages.items()
        if other != name and stage.one_pass and s.one_pass
        and (s.needs, s.runner, s.shard_items) == (stage.needs, stage.runner, stage.shard_items)
    ]  # fmt: skip


def passes(states: Mapping[str, State]) -> list[list[str]]:
    """The stages with something to do that will share a pass over the items, where two or more can."""
    stages = {name: state.stage for name, state in states.items() if not state.complete}
    groups = {tuple(sorted((name, *companions(stages, name)))) for name in stages}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def choose(stages: Stages, word: str) -> list[str]:
    """The stages a word names: one stage, or all of a group (`evaluate` is every `evaluate-...`)."""
    if word in stages:
        return [word]
    group = [name for name in stages if name.startswith(f"{word}-")]
    if not group:
        groups = {name.split("-")[0] for name in stages if "-" in name}
        raise UserError(f"unknown stage {word!r}; {nearest(word, {*stages, *groups})}")
    return group


@dataclass(frozen=True)
class State:
    """How far a stage is: its fingerprint, all its units, and which are done, failed, blocked or missing.

    Of those that were killed, `survey` says whether they count as failed or as missing.
    """

    stage: Stage[Any]
    fingerprint: Fingerprint
    keys: Sequence[str]
    places: Mapping[str, Place] = field(default_factory=dict)
    failed: Mapping[str, Failure] = field(default_factory=dict)
    blocked: frozenset[str] = frozenset()  # what they need failed upstream
    missing: Sequence[str] = ()
    killed: Mapping[str, Failure] = field(
        default_factory=dict
    )  # each is also among the failed or the missing

    @property
    def done(self) -> int:
        """How many units have an artifact."""
        return len(self.keys) - len(self.failed) - len(self.blocked) - len(self.missing)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do (failed units are not tried again unasked)."""
        return not self.missing


def survey(
    stages: Stages, contents: Contents, store: Store, known: Digests, killed_before: float = 0.0
) -> dict[str, State]:
    """The state of every stage, in order, from the index and a look at file sizes.

    Units that were recorded as killed before `killed_before` (seconds since 1970) are missing, as for a run that begins
    then; later ones are left out like failed ones, so that with 0 everything is as the last run left it.
    """
    with no_collection():
        units = {
            "items": Units(contents.items()),
            "captions": Units(contents.captions()),
            "corpus": Units([WHOLE]),
        }
        states: dict[str, State] = {}
        for name in order(stages):
            stage = stages[name]
            mapped = stage.over != "corpus"
            if mapped:
                states[name] = _mapped(stage, units[stage.over], states, store, known, killed_before)
            else:
                states[name] = _whole(stage, units[stage.over], states, contents, store, known)
    return states


def components(stage: Stage[Any], states: Mapping[str, State], known: Digests) -> dict[str, Any]:
    """What decides the content of a stage's artifacts, besides the items themselves."""
    return {
        "stage": stage.name,
        "version": stage.version,
        "params": dict(stage.decisive()),
        "needs": {need: states[need].fingerprint.hex for need in stage.needs},
        **stage.identity(known),
    }


def _mapped(
    stage: Stage[Any], keys: Units, states: Mapping[str, State], store: Store, known: Digests,
    killed_before: float,
) -> State:  # fmt: skip
    fingerprint = Fingerprint.of(components(stage, states, known))
    places = store.places_of(stage.name, fingerprint.hex, keys, stage.file_suffix)
    missing = ~places.there
    stopped = {key for need in stage.needs for key in (*states[need].failed, *states[need].blocked)}
    blocked = frozenset(key for key in stopped if key in keys and key not in places)
    failures = store.index.failures(fingerprint.hex)
    failed = {
        key: failure for key, failure in failures.items()
        if key in keys and key not in places and key not in blocked
    }  # fmt: skip
    killed = {key: failure for key, failure in failed.items() if failure.kind == "killed"}
    for key, failure in killed.items():
        if failure.time < killed_before:
            del failed[key]
    missing[[keys.position[key] for key in (*blocked, *failed)]] = False
    return State(stage, fingerprint, keys, places, failed, blocked, keys.chosen(missing), killed)


def _whole(
    stage: Stage[Any], keys: Units, states: Mapping[str, State], contents: Contents, store: Store,
    known: Digests,
) -> State:  # fmt: skip
    parts = components(stage, states, known)
    if stage.splits():
        parts["corpus"] = {split: _split_digest(contents, split) for split in stage.splits()}
        out = left_out([states[need] for need in stage.needs])
        if out:
            out &= {key for split in stage.splits() for key in _split_keys(contents, split)}
        if out:
            parts["left_out"] = digest_of(sorted(out))
    fingerprint = Fingerprint.of(parts)
    ready = all(states[need].complete for need in stage.needs)
    done = ready and store.has_run(stage.name, fingerprint.hex)
    return State(stage, fingerprint, keys, missing=() if done else keys)


def left_out(states: Iterable[State]) -> set[str]:
    """Items and captions that some stage could not process, which a stage over the corpus does without."""
    return {
        key for state in states if state.stage.over != "corpus" for key in (*state.failed, *state.blocked)
    }


def _split_keys(contents: Contents, split: str) -> set[str]:
    """The items and captions that a split is made of."""
    items = {digest for digest, _ in contents.gallery(split)}
    return items | {caption.digest for _, _, caption in contents.queries(split)}


def _split_digest(contents: Contents, split: str) -> str:
    """What decides a split's content: digests of items and captions, in order. Names do not count.

    A caption that describes other items also has their positions behind its own.
    """
    if split not in contents.split_digests:
        position = {digest: i for i, (digest, _) in enumerate(contents.gallery(split))}
        captions = (
            [position[digest], caption.digest, *_others(contents, caption, position)]
            for digest, _, caption in contents.queries(split)
        )
        contents.split_digests[split] = digest_of_lists(position, captions)
    return contents.split_digests[split]


def _others(contents: Contents, caption: Caption, position: Mapping[str, int]) -> list[int]:
    """Positions of the readable items that a caption describes besides its own."""
    if not caption.also:
        return []
    found = {position.get(contents.digests.get(item, "")) for item in caption.also}
    return sorted(place for place in found if place is not None)
