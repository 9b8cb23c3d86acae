"""The files in the folder of an evaluation, written and read by one class. No model and no torch.

`metrics.json` holds the estimates and the protocol, `queries.json` the members of the split, `ranking.safetensors`
ranks and first places, `explanation.safetensors` the evidence for matches from a method that explains them. Everything
is checked when it is read: a missing or damaged file is named in one sentence. Axes: Q captions, V items, A items with
a caption, K places kept of each caption's ranking, E explained captions, P results explained of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.errors import UserError
from pipeline.store.documents import Document, read_document
from trainers.measure.group_ranks import CAPTIONS, GROUPS, CaptionGroups
from trainers.measure.hubness import Hubness
from trainers.measure.metric_table import DIRECTIONS
from trainers.measure.metrics import Estimate, Ranks
from trainers.relevance import Positions, Relevance

METRICS, QUERIES = "metrics.json", "queries.json"
RANKING, EXPLANATION = "ranking.safetensors", "explanation.safetensors"
OWNER = "an evaluated method"
REMEDY = "evaluate the method again with --redo"

Estimates = dict[str, dict[str, Estimate]]
"""Estimates by direction, then by metric; RSUM, which sums over two directions, stands under `both`."""

Counts = NDArray[np.int64]


class Spread(Document):
    """Smallest, mean and largest count over all captions or items."""

    min: int
    mean: float
    max: int


class Side(Document):
    """One direction: numbers of queries and of candidates, and the metrics of a random order in percent."""

    queries: int
    gallery: int
    chance: dict[str, float] = {}


class PublishedProtocol(Document):
    """The published protocol that the corpus was imported under, as `Corpus.protocol` states it."""

    model_config = ConfigDict(extra="allow")

    name: str = ""
    sentence: str = ""
    digest: str = ""

    def as_json(self) -> dict[str, Any]:
        """The protocol as plain data, with the keys that were given and no defaults."""
        return self.model_dump(mode="json", exclude_unset=True)


class Protocol(Document):
    """The conditions of a measurement. Keys of later versions are kept as they are.

    The defaults of `kind` and `dropped` hold for evaluations of versions that did not write them. rerank: the sentence
    about re-ranking, if not all pairs were scored; seed: seed of the bootstrap; sums: the recalls that SumR and RSUM
    add up; v2t_convention: what an item ranks, all captions or groups of them; items_per_caption and t2v_rank:
    present if captions have several positives; kept: features that another ffmpeg or decoder made, one sentence
    each; applied: the sentence that names the run, if it was trained on another corpus.
    """

    model_config = ConfigDict(extra="allow")

    kind: str = "video"
    split: str
    split_digest: str
    items: int
    captions: int
    dropped: int = 0
    captions_per_item: Spread
    directions: dict[str, Side]
    ties: str
    v2t_rank: str
    v2t_convention: str = CAPTIONS
    post_processing: str
    intervals: str
    seed: int | None = None
    sums: str = ""
    items_per_caption: Spread | None = None
    t2v_rank: str = ""
    rerank: str = ""
    kept: list[str] = []
    applied: str = ""
    corpus: PublishedProtocol | None = None

    @property
    def groups(self) -> bool:
        """Whether items rank groups of captions, and not all captions."""
        return self.v2t_convention == GROUPS

    def side(self, direction: str) -> Side | None:
        """The sizes and chance of a direction; None if it was not evaluated, and for sums over both."""
        return self.directions.get(direction)

    def chance(self, direction: str) -> Mapping[str, float]:
        """The metrics of a random order in a direction, in percent; empty where none is known."""
        side = self.side(direction)
        return side.chance if side else {}

    def as_json(self) -> dict[str, Any]:
        """The protocol as plain data, with the keys that were given and no defaults."""
        return self.model_dump(mode="json", exclude_unset=True)


class Measures(Document):
    """Estimates under the optimistic (strict) rank of ties, and under the realistic (mean) rank.

    mean_ties: empty if no positive is tied.
    """

    metrics: Estimates
    mean_ties: Estimates = {}

    @property
    def estimates(self) -> Estimates:
        """The estimates that leaderboards show: those under the realistic (mean) rank of ties.

        A model that scores everything alike has optimistic rank 1 everywhere, but the realistic rank of chance.
        """
        return self.mean_ties or self.metrics

    @property
    def tied(self) -> bool:
        """Whether any positive is tied with another candidate."""
        return bool(self.mean_ties)


class PostProcessed(Measures):
    """The estimates under one post-processing of the scores, with the sentence that qualifies them."""

    note: str
    params: dict[str, Any]


class Metrics(Measures):
    """metrics.json. hubness: by direction. post_processed: by option, beside the estimates of the raw scores."""

    protocol: Protocol
    hubness: dict[str, Hubness] = {}
    post_processed: dict[str, PostProcessed] = {}


class Queries(Document):
    """queries.json: items by digest in gallery order; captions by digest with their texts and positives.

    caption_item: position of the item that each caption belongs to; caption_also: positions of its other positives,
    empty if no caption has any.
    """

    items: list[str]
    captions: list[str]
    caption_item: list[int]
    texts: list[str]
    caption_also: list[list[int]] = []

    @cached_property
    def positives(self) -> list[list[int]]:
        """The positions of all positives of each caption, first the item it belongs to."""
        further = self.caption_also or [[]] * len(self.caption_item)
        return [[item, *others] for item, others in zip(self.caption_item, further, strict=True)]

    @property
    def several(self) -> bool:
        """Whether any caption has more than one positive."""
        return any(self.caption_also)

    @cached_property
    def captions_of(self) -> list[list[int]]:
        """The captions that each item of the gallery is a positive of, in query order."""
        named: list[list[int]] = [[] for _ in self.items]
        for caption, positives in enumerate(self.positives):
            for item in dict.fromkeys(positives):
                named[item].append(caption)
        return named

    def positive_counts(self, direction: str, groups: bool = False) -> Counts:
        """Number of positives of each query: (Q,) for captions in t2v, (A,) for the items with a caption in v2t.

        `groups`: items rank groups of captions (`Protocol.groups`).
        """
        if direction == "v2t" and groups:
            return self._groups.right
        if direction == "t2v":
            return np.array([len(set(positives)) for positives in self.positives], np.int64)
        counts = np.array([len(captions) for captions in self.captions_of], np.int64)
        return counts[counts > 0]

    def gallery(self, direction: str, groups: bool = False) -> int:
        """Number of candidates that each query of a direction ranks; `groups`: of items, groups of captions."""
        if direction == "v2t" and groups:
            return len(self._groups)
        return len(self.items) if direction == "t2v" else len(self.captions)

    @property
    def _groups(self) -> CaptionGroups:
        return CaptionGroups(Relevance.of(self.positives, len(self.items)))


@dataclass(frozen=True)
class Ranking:
    """The rank of every query's positive, and the first places. `v2t` ranks the items with a caption (query_items).

    ranks: by direction, (Q,) of captions and (A,) of items. query_items: (A,) positions of the items with a caption,
    empty if `v2t` was not evaluated. best_positives: (Q,), each caption's best-ranked positive, whose rank is stored.
    top_items, top_scores: (Q, K), best first, equal scores in gallery order. occurrences: by direction, for each
    candidate the number of queries that have it in their first places; evaluations of early versions lack them.
    """

    ranks: dict[str, Ranks]
    query_items: Positions
    best_positives: Positions
    top_items: Positions
    top_scores: NDArray[np.float32]
    occurrences: dict[str, Counts]

    def arrays(self, several: bool) -> dict[str, NDArray[Any]]:
        """The tensors of ranking.safetensors; `t2v.item`, the ranked positive, only if a caption has several."""
        arrays: dict[str, NDArray[Any]] = {"top.items": self.top_items, "top.scores": self.top_scores}
        for direction, ranks in self.ranks.items():
            arrays |= {f"{direction}.rank": ranks.strict, f"{direction}.mean_rank": ranks.mean}
        if "t2v" in self.ranks and several:
            arrays["t2v.item"] = self.best_positives
        if "v2t" in self.ranks:
            arrays["v2t.item"] = self.query_items
        arrays |= {f"{direction}.occurrences": counts for direction, counts in self.occurrences.items()}
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class EvaluatedFolder:
    """The folder of an evaluation. Each file is read once, when its property is first used.

    Every property raises UserError naming a file that is missing, damaged, or belongs to another evaluation.
    """

    folder: Path

    def write(
        self, metrics: Metrics, queries: Queries, ranking: Ranking,
        explanation: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:  # fmt: skip
        """Write all files; explanation.safetensors only if the method explains its matches."""
        summary: dict[str, Any] = {
            "metrics": _plain(metrics.metrics),
            "mean_ties": _plain(metrics.mean_ties),
            "protocol": metrics.protocol.as_json(),
            "hubness": {direction: asdict(each) for direction, each in metrics.hubness.items()},
        }
        if metrics.post_processed:
            summary["post_processed"] = {
                name: block.model_dump(mode="json") for name, block in metrics.post_processed.items()
            }
        members = queries.model_dump(mode="json", exclude=set() if queries.caption_also else {"caption_also"})
        (self.folder / METRICS).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (self.folder / QUERIES).write_text(json.dumps(members) + "\n", encoding="utf-8")
        save_file(ranking.arrays(bool(queries.caption_also)), self.folder / RANKING)
        if explanation:
            save_file(dict(explanation), self.folder / EXPLANATION)

    @property
    def exists(self) -> bool:
        """Whether the folder holds the metrics of an evaluated method."""
        return (self.folder / METRICS).is_file()

    @cached_property
    def metrics(self) -> Metrics:
        """The estimates, protocol and hubness of metrics.json."""
        return read_document(self.folder / METRICS, Metrics, OWNER, REMEDY)

    @cached_property
    def queries(self) -> Queries:
        """The items and captions of queries.json, with the positives of each caption."""
        path = self.folder / QUERIES
        queries = read_document(path, Queries, OWNER, REMEDY)
        lists = {len(queries.captions), len(queries.caption_item), len(queries.texts)}
        lists |= {len(queries.caption_also)} if queries.caption_also else set()
        if len(lists) > 1:
            raise UserError(f"{path} is damaged: its lists of captions differ in length")
        if any(not 0 <= item < len(queries.items) for row in queries.positives for item in row):
            raise UserError(
                f"{path} is damaged: a caption names an item beyond the {len(queries.items)} there are"
            )
        return queries

    @cached_property
    def ranking(self) -> Ranking:
        """The ranks and first places of ranking.safetensors."""
        path, queries = self.folder / RANKING, self.queries
        arrays = _read_arrays(path)
        query_items = self._positions(arrays, "v2t.item", np.empty(0, np.int64))
        if "v2t.rank" in arrays and "v2t.item" not in arrays:
            raise UserError(f"{path} is damaged: it does not say whose the ranks of items are")
        counts = {"t2v": len(queries.captions), "v2t": len(query_items)}
        ranks = {
            direction: self._ranks(arrays, direction, counts[direction])
            for direction in DIRECTIONS
            if f"{direction}.rank" in arrays or f"{direction}.mean_rank" in arrays
        }
        if not ranks:
            raise UserError(f"{path} holds no ranks; {REMEDY}")
        top_items = self._positions(arrays, "top.items", None)
        top_scores = _array(arrays, "top.scores", path)
        if top_items.ndim != 2 or not top_items.shape == top_scores.shape == (
            counts["t2v"],
            top_items.shape[1],
        ):
            raise UserError(
                f"{path} is of another evaluation than {QUERIES}: it has first places {top_items.shape} and scores "
                f"{top_scores.shape} of {counts['t2v']} captions"
            )
        best_positives = self._positions(arrays, "t2v.item", np.asarray(queries.caption_item, np.int64))
        occurrences = {d: self._occurrences(arrays, d) for d in ranks if f"{d}.occurrences" in arrays}
        return Ranking(ranks, query_items, best_positives, top_items, top_scores, occurrences)

    @cached_property
    def explanation(self) -> dict[str, NDArray[Any]]:
        """The evidence for matches: `query` (E,), `item` (E, P), and the method's arrays (E, P, ...) for each pair.

        Empty if the method explains nothing.
        """
        path = self.folder / EXPLANATION
        if not path.exists():
            return {}
        arrays = _read_arrays(path)
        query, item = _array(arrays, "query", path), _array(arrays, "item", path)
        for name, values in arrays.items():
            pairs = (len(query),) if name == "query" else (len(query), *item.shape[1:2])
            if values.shape[: len(pairs)] != pairs or query.ndim != 1 or item.ndim != 2:
                raise UserError(f"{path} is damaged: {name} has the shape {values.shape}")
        if not _within(query, len(self.queries.captions)) or not _within(item, len(self.queries.items)):
            raise UserError(
                f"{path} is of another evaluation than {QUERIES}: it names pairs that are not there"
            )
        return arrays

    def _ranks(self, arrays: Mapping[str, NDArray[Any]], direction: str, queries: int) -> Ranks:
        path = self.folder / RANKING
        strict, mean = (_array(arrays, f"{direction}.{name}", path) for name in ("rank", "mean_rank"))
        for ranks in (strict, mean):
            if ranks.shape != (queries,):
                raise UserError(
                    f"{path} is of another evaluation than {QUERIES}: {direction} has ranks {ranks.shape} for "
                    f"{queries} queries"
                )
            if not (np.isfinite(ranks) & (ranks >= 1)).all():
                raise UserError(f"{path} is damaged: {direction} has ranks that are no numbers from 1 on")
        return Ranks(strict, mean)

    def _positions(
        self, arrays: Mapping[str, NDArray[Any]], name: str, default: Positions | None
    ) -> Positions:
        """A tensor of positions in the gallery; `default`, if given, where the file lacks it."""
        path = self.folder / RANKING
        if name not in arrays and default is not None:
            return default
        positions = _array(arrays, name, path)
        if not _within(positions, len(self.queries.items)):
            raise UserError(
                f"{path} is damaged: {name} holds other values than positions of the {len(self.queries.items)} items"
            )
        return positions

    def _occurrences(self, arrays: Mapping[str, NDArray[Any]], direction: str) -> Counts:
        counts, members = arrays[f"{direction}.occurrences"], self.queries.gallery(direction)
        if counts.shape != (members,):
            raise UserError(
                f"{self.folder / RANKING} is of another evaluation than {QUERIES}: it counts the places of "
                f"{counts.shape} members in {direction}, and there are {members}"
            )
        return counts


def _plain(estimates: Estimates) -> Any:
    return TypeAdapter(Estimates).dump_python(estimates, mode="json")


def _within(positions: NDArray[Any], count: int) -> bool:
    """Whether all are integers in [0, count)."""
    return positions.dtype.kind in "iu" and bool(((positions >= 0) & (positions < count)).all())


def _array(arrays: Mapping[str, NDArray[Any]], name: str, path: Path) -> NDArray[Any]:
    if name not in arrays:
        raise UserError(f"{path} is damaged: it holds no {name}")
    return arrays[name]


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path}; {REMEDY}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; {REMEDY}") from None
