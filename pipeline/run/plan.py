"""What stages need and how far they are: order, ancestors, and which units are done, failed, blocked or missing."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption
from pipeline.errors import UserError, nearest
from pipeline.memory import no_collection
from pipeline.run.stage import Digests, Stage
from pipeline.store.fingerprint import Fingerprint, digest_of, digest_of_lists
from pipeline.store.index import Failure
from pipeline.store.places import Place, Places, Units
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
    """The state of every stage, in order, from the index and a look at file sizes; `killed_before` as of `Survey`."""
    return dict(Survey(stages, contents, store, known, killed_before))


@dataclass(frozen=True)
class Recorded:
    """What a store holds of one fingerprint: the places of its outputs, and its failures by key."""

    places: Places
    failures: Mapping[str, Failure]
    changes: int  # of the index by others, when this was read


class Survey(Mapping[str, State]):
    """The state of each stage by name, in order. Looked up in the store when it is first asked for, and then kept.

    A lookup reads the index once for the stage and once for each of its ancestors that is not known yet. A
    million items take 5 CPU seconds a stage, so a run keeps one survey: it calls `forget` for what it made
    itself, and `refresh` before it relies on anything that another run on the same store may have changed.

    Units that were recorded as killed before `killed_before` (seconds since 1970) are missing, as for a run that begins
    then; later ones are left out like failed ones, so that with 0 everything is as the last run left it.
    """

    def __init__(
        self, stages: Stages, contents: Contents, store: Store, known: Digests, killed_before: float = 0.0
    ) -> None:
        self.stages = stages
        self._killed_before = killed_before
        self._contents, self._store, self._digests = contents, store, known
        self._order = order(stages)
        self._states: dict[str, State] = {}
        self._recorded: dict[str, Recorded] = {}  # by fingerprint

    def __getitem__(self, name: str) -> State:
        if name not in self._states:
            stage = self.stages[name]
            needed = {need: self[need] for need in stage.needs}
            with no_collection():
                self._states[name] = self._look_up(stage, needed)
        return self._states[name]

    def __contains__(self, name: object) -> bool:
        return name in self.stages

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def killed_before(self) -> float:
        """The time before which a unit must have been killed in order to be tried again."""
        return self._killed_before

    @killed_before.setter
    def killed_before(self, seconds: float) -> None:
        if seconds != self._killed_before:
            self._killed_before = seconds
            self._states.clear()  # worked out again from what was read of the store

    def forget(self, names: Iterable[str]) -> None:
        """Read the store again for these stages when they are asked for.

        The states of the stages that need them are worked out again, from what was read of those before.
        """
        names = set(names)
        for name in names & self._states.keys():
            self._recorded.pop(self._states[name].fingerprint.hex, None)
        for name in descendants(self.stages, names):
            self._states.pop(name, None)

    def refresh(self, names: Iterable[str] | None = None) -> None:
        """Forget what others may have changed of these stages, or of all, and of what they need, since it was read.

        Of stages over items and captions that is nothing, unless another process has written to the index.
        Stages over the corpus are folders, which the index does not know; a look at them is cheap.
        """
        changes = self._store.index.changes_of_others()
        names = ancestors(self.stages, self._order if names is None else names)
        self.forget(
            name for name in names if name in self._states and self._is_stale(self._states[name], changes)
        )

    def _is_stale(self, state: State, changes: int) -> bool:
        if state.stage.over == "corpus":
            return True
        return self._recorded[state.fingerprint.hex].changes != changes

    @functools.cached_property
    def _units(self) -> dict[str, Units]:
        return {
            "items": Units(self._contents.items()),
            "captions": Units(self._contents.captions()),
            "corpus": Units([WHOLE]),
        }

    def _look_up(self, stage: Stage[Any], needed: Mapping[str, State]) -> State:
        keys = self._units[stage.over]
        if stage.over == "corpus":
            return _whole(stage, keys, needed, self._contents, self._store, self._digests)
        fingerprint = Fingerprint.of(components(stage, needed, self._digests))
        return _mapped(
            stage, keys, fingerprint, needed, self._read(stage, keys, fingerprint), self._killed_before
        )

    def _read(self, stage: Stage[Any], keys: Units, fingerprint: Fingerprint) -> Recorded:
        if fingerprint.hex not in self._recorded:
            changes = self._store.index.changes_of_others()  # first: what is written meanwhile is read again
            places = self._store.places_of(stage.name, fingerprint.hex, keys, stage.file_suffix)
            failures = self._store.index.failures(fingerprint.hex)
            self._recorded[fingerprint.hex] = Recorded(places, failures, changes)
        return self._recorded[fingerprint.hex]


def components(stage: Stage[Any], states: Mapping[str, State], known: Digests) -> dict[str, Any]:
    """What decides the content of a stage's artifacts, besides the items themselves."""
    return components_on({need: states[need].fingerprint.hex for need in stage.needs}, stage, known)


def components_on(needs: Mapping[str, str], stage: Stage[Any], known: Digests) -> dict[str, Any]:
    """The same, from the fingerprints of the stages it needs."""
    return {
        "stage": stage.name,
        "version": stage.version,
        "params": dict(stage.decisive()),
        "needs": dict(needs),
        **stage.identity(known),
        **stage.kept,
    }


def _mapped(
    stage: Stage[Any], keys: Units, fingerprint: Fingerprint, states: Mapping[str, State], recorded: Recorded,
    killed_before: float,
) -> State:  # fmt: skip
    places = recorded.places
    missing = ~places.there
    stopped = {key for need in stage.needs for key in (*states[need].failed, *states[need].blocked)}
    blocked = frozenset(key for key in stopped if key in keys and key not in places)
    failed = {
        key: failure for key, failure in recorded.failures.items()
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
