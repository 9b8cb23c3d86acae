"""The outputs of a stage as arrays, by the ids of items or captions, for programs that use crossreel as a library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flows.features import having_features
from flows.project import Project
from pipeline.corpus.contents import Contents
from pipeline.errors import ItemError, UserError, nearest
from pipeline.run import plan
from pipeline.store.segments import Array
from pipeline.store.store import FeatureReader

if TYPE_CHECKING:
    from flows.torch_data import FeatureDataset

MOST_SUGGESTED = 50  # ids that an error may list where none is near


@dataclass(frozen=True)
class Rows:
    """One output of several items end to end: `values` (total, ...), and the `ids` and `lengths` (N,) of the items.

    >>> rows = Rows(["a", "b"], np.array([[1.0], [2.0], [3.0]]), np.array([1, 2]))
    >>> [part.tolist() for part in rows.parts()]
    [[[1.0]], [[2.0], [3.0]]]
    """

    ids: list[str]
    values: NDArray[Any]
    lengths: NDArray[np.int64]

    def parts(self) -> list[NDArray[Any]]:
        """The rows (length, ...) of each item, as views."""
        return np.split(self.values, np.cumsum(self.lengths)[:-1])

    def padded(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The rows of all items as one array (N, longest, ...) padded with zeros, and the mask (N, longest) of rows."""
        mask = np.arange(int(self.lengths.max(initial=0))) < self.lengths[:, None]
        out = np.zeros((*mask.shape, *self.values.shape[1:]), self.values.dtype)
        out[mask] = self.values
        return out, mask


class Features:
    """What a stage made of each item or caption, in the order of the corpus.

    `features["video-12"]` has the arrays by name of output; `in`, `len` and iteration are over the ids that have
    arrays. Arrays are read when they are asked for, and checked against their checksums.
    """

    def __init__(
        self, name: str, names: Mapping[str, str], state: plan.State, reader: FeatureReader,
        unmade: Mapping[str, ItemError], of_splits: Mapping[str, frozenset[str]], files: Mapping[str, Path],
        whence: str, keep: object = None,
    ) -> None:  # fmt: skip
        """names: id -> key. unmade: the error of each id without arrays. whence: what an unknown id is looked up in."""
        self.name, self.outputs = name, tuple(state.stage.fields)
        self._over, self._reader, self._whence = state.stage.over, reader, whence
        self._names, self._unmade, self._of_splits, self._files = names, unmade, of_splits, files
        self._state, self._keep = state, keep  # keep: a temporary folder lives as long as what reads from it

    @property
    def failed(self) -> dict[str, str]:
        """The reason for each item or caption that failed in this stage or in one that it needs."""
        return {name: error.reason for name, error in self._unmade.items()}

    @property
    def missing(self) -> list[str]:
        """The ids that the stage has not made yet."""
        return [
            name for name, key in self._names.items() if key not in self._reader and name not in self._unmade
        ]

    def split(self, name: str) -> Features:
        """The same of the items, or captions, of one split."""
        if name not in self._of_splits:
            raise UserError(f"{self._whence} has no split {name!r}; {nearest(name, self._of_splits)}")
        inside = self._of_splits[name]
        return Features(
            self.name,
            {one: key for one, key in self._names.items() if one in inside},
            self._state, self._reader,
            {one: error for one, error in self._unmade.items() if one in inside},
            self._of_splits, self._files, self._whence, self._keep,
        )  # fmt: skip

    def __getitem__(self, name: str) -> dict[str, Array]:
        key = self._key(name)
        arrays = {output: self._reader.rows(key, output) for output in self.outputs[1:]}
        first = self.outputs[0]
        return {first: self._reader.rows(key, first, check=True), **arrays}  # one checksum covers all outputs

    def __contains__(self, name: object) -> bool:
        return name in self._names and self._names[str(name)] in self._reader

    def __iter__(self) -> Iterator[str]:
        return (name for name, key in self._names.items() if key in self._reader)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def keys(self) -> list[str]:
        """The ids that have arrays, in the order of the corpus."""
        return list(self)

    def items(self) -> Iterator[tuple[str, dict[str, Array]]]:
        """Yield each id with its arrays, in the order of the corpus."""
        return ((name, self[name]) for name in self)

    def file(self, name: str) -> Path:
        """The file that the stage made of an item, for instance a compressed video."""
        self._key(name)
        if name not in self._files:
            raise UserError(f"the stage {self.name} makes no files")
        return self._files[name]

    def note(self, name: str) -> dict[str, Any]:
        """What the stage noted about an item, for instance which decoder read it."""
        return self._reader.note(self._key(name))

    def numpy(self, output: str = "") -> Rows:
        """One output of all items, "" for the first output, which is the one that methods read."""
        output = self._output(output)
        ids = list(self)
        arrays = [self._reader.rows(self._names[name], output, check=True) for name in ids]
        if not arrays:
            raise UserError(f"{self.name} has made nothing yet of what is asked for")
        return Rows(ids, np.concatenate(arrays), np.array([len(array) for array in arrays], np.int64))

    def torch(self, *outputs: str) -> FeatureDataset:
        """A `torch.utils.data.Dataset` of (id, {output: tensor}); without names, of all outputs."""
        from flows.torch_data import FeatureDataset  # torch: only what asks for it pays for it

        chosen = [self._output(output) for output in outputs] or list(self.outputs)
        return FeatureDataset(
            {name: self._reader.where[self._names[name]] for name in self},
            {name: self._names[name] for name in self}, chosen, self._keep,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self)} {self._over}, {', '.join(self.outputs)}>"

    def _output(self, output: str) -> str:
        if output and output not in self.outputs:
            raise UserError(f"stage {self.name} has no output {output!r}; {nearest(output, self.outputs)}")
        return output or self.outputs[0]

    def _key(self, name: str) -> str:
        """The key of an id that has arrays. Raises ItemError if it failed, UserError if it is unknown or missing."""
        if name in self._unmade:
            raise self._unmade[name]
        if name not in self._names:
            close = nearest(name, self._names)
            if close.startswith("possible") and len(self._names) > MOST_SUGGESTED:
                close = f"it has {len(self._names)}"
            raise UserError(f"no item {name!r} among the {self._over} of {self._whence}; {close}")
        if self._names[name] not in self._reader:
            raise UserError(f"{self.name} of {name} is not made yet; run the experiment first")
        return self._names[name]


def stage_features(project: Project, stage: str, keep: object = None) -> Features:
    """What a stage of a project made so far.

    Raises UserError for a stage that is not there, or that makes no arrays of items or captions.
    """
    known = project.stages.get(stage)
    if known is not None and known.over == "corpus":
        raise UserError(
            f"{stage} is made once for the whole corpus and has no arrays by item; those that have: "
            f"{', '.join(stages_with_features(project))}"
        )
    states = project.states()
    state = having_features(project, stage, states)
    contents, over, fp = project.contents_of(state), state.stage.over, state.fingerprint.hex
    names = contents.names(over)
    unmade = _unmade(project, states, state, names, contents.unreadable)
    suffix = state.stage.file_suffix
    files = {name: project.store.item_file(stage, fp, key, suffix) for name, key in names.items() if suffix}
    reader = FeatureReader({
        key: (project.store.segment_path(stage, fp, place.segment), place.row)
        for key, place in state.places.items()
    })  # fmt: skip
    return Features(
        stage, names, state, reader, unmade, _splits(contents, over), files, str(contents.corpus.path), keep
    )


def stages_with_features(project: Project) -> list[str]:
    """The stages that have arrays by item or caption, in order."""
    return [name for name in plan.order(project.stages) if project.stages[name].fields]


def _splits(contents: Contents, over: str) -> dict[str, frozenset[str]]:
    """The ids of the items, or captions, of each split."""
    corpus = contents.corpus
    if over == "captions":
        return {
            split: frozenset(caption.id for _, caption in corpus.captions(split)) for split in corpus.splits
        }
    return {split: frozenset(item.id for item in corpus.gallery(split)) for split in corpus.splits}


def _unmade(
    project: Project,
    states: plan.Survey,
    state: plan.State,
    names: Mapping[str, str],
    unreadable: Mapping[str, str],
) -> dict[str, ItemError]:
    """The error of each id that failed, in this stage, in one that it needs, or as a file."""
    out: dict[str, ItemError] = {}
    if state.stage.over == "items":
        out = {name: ItemError(name, reason) for name, reason in unreadable.items()}
    reasons = {key: failure.reason for key, failure in state.failed.items()}
    if state.blocked:
        for need in plan.ancestors(project.stages, state.stage.needs):
            for key, failure in states[need].failed.items():
                if key in state.blocked:
                    reasons.setdefault(key, f"{failure.reason} ({need})")
    for name, key in names.items():
        if key in reasons:
            out[name] = ItemError(name, reasons[key])
    return out
