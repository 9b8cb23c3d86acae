"""The order and ancestors of stages, and their states: which units are done, failed, blocked or missing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
WHOLE = "corpus"  # key of the only unit of a stage over the whole corpus


def order(stages: Stages) -> list[str]:
    """Return the names of the stages, each after the stages it needs. Raises ValueError for a cycle or unknown need."""
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
    """Return the named stages and all stages they need."""
    out: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in out:
            out.add(name)
            todo.extend(stages[name].needs)
    return out


def ends(stages: Stages, names: Collection[str]) -> set[str]:
    """Return those of the named stages that none of the others needs."""
    return set(names) - {need for name in names for need in ancestors(stages, [name]) - {name}}


def descendants(stages: Stages, names: Iterable[str]) -> set[str]:
    """Return the named stages and all stages that need them."""
    out = set(names)
    for name in order(stages):
        if out.intersection(stages[name].needs):
            out.add(name)
    return out


def kind_of(stages: Stages, name: str) -> str:
    """Return the kind of the items that a stage processes: its own, else that of a stage it needs; "" for all kinds."""
    stage = stages[name]
    if stage.kind or stage.over != "items":
        return stage.kind
    return next((kind for need in stage.needs if (kind := kind_of(stages, need))), "")


def companions(stages: Stages, name: str) -> list[str]:
    """Return the other stages that can share a pass over the items with a stage, because they read the same inputs."""
    stage = stages[name]
    return [
        other
        for other, s in stages.items()
        if other != name and stage.one_pass and s.one_pass and s.pass_key == stage.pass_key
    ]  # fmt: skip


def passes(states: Mapping[str, State]) -> list[list[str]]:
    """Return the groups of two or more unfinished stages that will share a pass over the items."""
    stages = {name: state.stage for name, state in states.items() if not state.complete}
    groups = {tuple(sorted((name, *companions(stages, name)))) for name in stages}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def choose(stages: Stages, word: str) -> list[str]:
    """Return the stages that a word names: one stage, or all of a group (`evaluate` is every `evaluate-...`)."""
    if word in stages:
        return [word]
    group = [name for name in stages if name.startswith(f"{word}-")]
    if not group:
        groups = {name.split("-")[0] for name in stages if "-" in name}
        raise UserError(f"unknown stage {word!r}; {nearest(word, {*stages, *groups})}")
    return group


@dataclass(frozen=True)
class State:
    """The state of a stage: its fingerprint, all its units, and which are done, failed, blocked or missing.

    A killed unit counts as failed or as missing, as `Survey` decides by its time.
    """

    stage: Stage[Any]
    fingerprint: Fingerprint
    keys: Sequence[str]
    places: Mapping[str, Place] = field(default_factory=dict)
    failed: Mapping[str, Failure] = field(default_factory=dict)
    blocked: frozenset[str] = frozenset()  # units whose inputs failed in an earlier stage
    missing: Sequence[str] = ()
    killed: Mapping[str, Failure] = field(
        default_factory=dict
    )  # each is also among the failed or the missing
    kind: str = ""  # kind of the items that are its units, or that it reads; "" for items of every kind

    @property
    def done(self) -> int:
        """Number of units that have an artifact."""
        return len(self.keys) - len(self.failed) - len(self.blocked) - len(self.missing)

    @property
    def complete(self) -> bool:
        """Whether no unit is missing (failed units are tried again only with `retry_failed`)."""
        return not self.missing


def survey(
    stages: Stages, contents: Contents, store: Store, known: Digests, killed_before: float = 0.0
) -> dict[str, State]:
    """Return the state of every stage, in order, from the index and file sizes; for `killed_before` see `Survey`."""
    return dict(Survey(stages, contents, store, known, killed_before))


@dataclass(frozen=True)
class Recorded:
    """The content of a store for one fingerprint: the places of its outputs, and its failures by key."""

    places: Places
    failures: Mapping[str, Failure]
    changes: int  # the value of `Index.changes_of_others` when this was read


class Survey(Mapping[str, State]):
    """The state of each stage by name, in order. It is read from the store at first use, and then kept.

    A lookup reads the index once for the stage and once for each ancestor that was not read yet. A million items
    take 5 CPU seconds per stage, so a run keeps one survey: it calls `forget` for the stages that it made itself,
    and `refresh` before it relies on a state that another run on the same store may have changed.

    A stage that is made on demand is complete without its artifact while every stage that needs it is complete, until
    `demand` names it.

    Units that were recorded as killed before `killed_before` (seconds since 1970) count as missing, as in a run that
    begins at that time; units killed later count as failed. With 0, all killed units count as failed.
    """

    def __init__(
        self, stages: Stages, contents: Contents, store: Store, known: Digests, killed_before: float = 0.0
    ) -> None:
        self.stages = stages
        self._killed_before = killed_before
        self._contents, self._store, self._digests = contents, store, known
        self._order = order(stages)
        self._states: dict[str, State] = {}
        self._recorded: dict[str, Recorded] = {}  # fingerprint -> the store's records
        self._known_units: dict[
            tuple[str, str], Units
        ] = {}  # by unit of work and kind, each made at its first use
        self._demanded: set[str] = set()

    def __getitem__(self, name: str) -> State:
        if name not in self._states:
            needed = {need: self[need] for need in self.stages[name].needs}
            with no_collection():
                self._states[name] = self._look_up(name, needed)
            if self._is_not_needed(name):
                self._states[name] = replace(self._states[name], missing=())
        return self._states[name]

    def _is_not_needed(self, name: str) -> bool:
        """Whether a stage that is made on demand is missing, and all that read it are made."""
        stage = self.stages[name]
        if not stage.on_demand or stage.pinned or name in self._demanded or self._states[name].complete:
            return False
        readers = [other for other, one in self.stages.items() if name in one.needs]
        return bool(readers) and all(self[reader].complete for reader in readers)

    def demand(self, names: Iterable[str]) -> None:
        """Count these stages as missing if their artifacts are, because something is about to read them."""
        new = {name for name in names if name in self.stages and self.stages[name].on_demand} - self._demanded
        self._demanded |= new
        self.forget(new)

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
            self._states.clear()  # computed again from the records that were read

    def of_stages(self, stages: Stages) -> Survey:
        """Return a survey of other stages over the same corpus; both use what either has read of the store."""
        other = Survey(stages, self._contents, self._store, self._digests, self._killed_before)
        other._recorded, other._known_units = self._recorded, self._known_units
        other._demanded = set(self._demanded)
        return other

    def forget(self, names: Iterable[str]) -> None:
        """Read the store again for these stages at their next use.

        The states of the stages that need them are computed again, from what was read of the store before.
        """
        names = set(names)
        for name in names & self._states.keys():
            self._recorded.pop(self._states[name].fingerprint.hex, None)
        for name in descendants(self.stages, names):
            self._states.pop(name, None)

    def refresh(self, names: Iterable[str] | None = None) -> None:
        """Forget states of these stages (default: all) and of their ancestors that other processes may have changed.

        Stages over items and captions are forgotten only if another process has written to the index since.
        Stages over the corpus are folders, which the index does not record; reading them again is cheap.
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

    def _units(self, over: str, kind: str) -> Units:
        if (over, kind) not in self._known_units:
            contents = self._contents.of_kind(kind)
            units = {"items": contents.items, "captions": contents.captions}.get(over, lambda: [WHOLE])
            self._known_units[over, kind] = Units(units())
        return self._known_units[over, kind]

    def _look_up(self, name: str, needed: Mapping[str, State]) -> State:
        stage, kind = self.stages[name], kind_of(self.stages, name)
        if stage.over == "corpus":
            contents, keys = self._contents.of_kind(kind), self._units("corpus", "")
            state = _whole(stage, keys, needed, contents, self._store, self._digests)
        else:
            fingerprint = stage.pinned or Fingerprint.of(components(stage, needed, self._digests))
            kind = kind or self._kind_of_rows(stage, fingerprint)
            keys = self._units(stage.over, kind)
            recorded = self._read(stage, keys, fingerprint)
            state = _mapped(stage, keys, fingerprint, needed, recorded, self._killed_before)
        return replace(state, kind=kind) if kind else state

    def _kind_of_rows(self, stage: Stage[Any], fingerprint: Fingerprint) -> str:
        """The kind of the items that imported features are of; "" if they are of several kinds, or not of items."""
        if stage.runner or stage.over != "items" or len(self._contents.corpus.kinds) < 2:
            return ""
        items = self._contents.items()
        places = self._store.places_of(stage.name, fingerprint.hex, self._units("items", ""))
        kinds = {items[key].kind for key in places}
        return kinds.pop() if len(kinds) == 1 else ""

    def _read(self, stage: Stage[Any], keys: Units, fingerprint: Fingerprint) -> Recorded:
        if fingerprint.hex not in self._recorded:
            changes = (
                self._store.index.changes_of_others()
            )  # read before the places, so that later writes are noticed
            places = self._store.places_of(stage.name, fingerprint.hex, keys, stage.file_suffix)
            failures = self._store.index.failures(fingerprint.hex)
            self._recorded[fingerprint.hex] = Recorded(places, failures, changes)
        return self._recorded[fingerprint.hex]


def components(stage: Stage[Any], states: Mapping[str, State], known: Digests) -> dict[str, Any]:
    """Return the components that decide the content of a stage's artifacts, besides the items themselves."""
    return components_on({need: states[need].fingerprint.hex for need in stage.needs}, stage, known)


def components_on(needs: Mapping[str, str], stage: Stage[Any], known: Digests) -> dict[str, Any]:
    """Return the same components, given the fingerprints of the stages it needs."""
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
    if stage.pinned:
        there = store.has_run(stage.name, stage.pinned.hex)
        return State(stage, stage.pinned, keys, missing=() if there else keys)
    parts = components(stage, states, known)
    if stage.splits():
        parts["corpus"] = {split: _split_digest(contents, split) for split in stage.splits()}
        out = left_out([states[need] for need in stage.needs])
        if out:
            out &= {key for split in stage.splits() for key in split_keys(contents, split)}
        if out:
            parts["left_out"] = digest_of(sorted(out))
    fingerprint = Fingerprint.of(parts)
    done = store.has_run(
        stage.name, fingerprint.hex
    )  # even if its inputs are gone: a run makes those alone again
    return State(stage, fingerprint, keys, missing=() if done else keys)


def left_out(states: Iterable[State]) -> set[str]:
    """Return the items and captions that some stage could not process, so that a stage over the corpus omits them."""
    return {
        key for state in states if state.stage.over != "corpus" for key in (*state.failed, *state.blocked)
    }


def split_keys(contents: Contents, split: str) -> set[str]:
    """Return the keys of the items and captions of a split."""
    items = {digest for digest, _ in contents.gallery(split)}
    return items | {caption.digest for _, _, caption in contents.queries(split)}


def _split_digest(contents: Contents, split: str) -> str:
    """Return the digest of a split's content: the digests of its items and captions, in order, without their names.

    If a caption describes further items, their positions follow that of its own item.
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
    """Return the positions of the readable items that a caption describes besides its own."""
    if not caption.also:
        return []
    places = {position.get(contents.digests.get(item, "")) for item in caption.also}
    return sorted(place for place in places if place is not None)
