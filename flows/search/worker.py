"""The process that answers searches: it holds a trained method, the index, and the networks that encode queries."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flows.search.chain import Chain, Features
from flows.search.index import ITEMS, TEXTS
from pipeline.child import Send
from pipeline.errors import UserError
from trainers.measure.metrics import top
from trainers.measure.search import (
    MEMORY_MB,
    Encodings,
    Trained,
    best,
    best_stretches,
    every_pair,
    every_score,
    places_of,
)
from trainers.method import Encoded

STRETCHES = 24  # of the scale of a query's scores
CLIPS = "clip_scores"  # name of the scores of equal stretches of an item, among the arrays of a method's `explain`


def serve(request: dict[str, Any], send: Send) -> None:
    """Entry of the process: answers one request, and keeps what its `about` describes loaded.

    Each is answered by one reply with arrays; before it come `{"say": sentence}`.
    """
    about = json.dumps(request["about"], sort_keys=True)
    answer = {
        "search": Loaded.search, "rank": Loaded.rank, "media": Loaded.media, "explain": Loaded.explain,
        "encode": Loaded.encode, "scores": Loaded.scores, "profile": Loaded.profile, "own": Loaded.own,
    }[request["ask"]]  # fmt: skip
    send({}, answer(_loaded(about), request, send))


@functools.lru_cache(maxsize=1)  # each process serves one project and split
def _loaded(about: str) -> Loaded:
    return Loaded(json.loads(about))


class Loaded:
    """Everything that is needed to answer. A query is a `place` in the index, or the text or file to encode.

    A request is a query itself, or holds several as `texts` and `items`.

    about: the folders `trained`, `packed`, `index` and `work`, the `device`, the `options` of extractors, the
    `chains` of captions and items, the `first` outputs of the stages read, and `beside`: the keys `item` and
    `caption` of two that have features, the `text` of the latter, and the `rows` where all this lies.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        self.device, self.work = torch.device(about["device"]), Path(about["work"])
        self.trained = Trained(Path(about["trained"]), Path(about["packed"]), self.device, MEMORY_MB)
        index = Path(about["index"])
        self.items, self.texts = Encodings(index / ITEMS), Encodings(index / TEXTS)
        self.chains = {over: Chain(stages, about["options"]) for over, stages in about["chains"].items()}
        self.beside = about["beside"]
        rows = {
            stage: {key: (str(path), int(row)) for key, (path, row) in where.items()}
            for stage, where in self.beside["rows"].items()
        }
        self.features = Features(about["first"], rows)
        self._ready: set[str] = set()  # the chains whose networks are in memory
        self._knows_moments: bool | None = None  # not known before the first explanation

    def search(self, request: dict[str, Any], send: Send) -> dict[str, NDArray[Any]]:
        """`position` and `score` (K,) of the best items, and `moment` (K, 2) if the method knows them."""
        texts = self._texts(request, send)
        positions, scores = best(
            lambda items: self.trained.method.scores(texts, items)[0], self.items, request["top"], self.device
        )
        return {"position": positions, "score": scores, **self._moments(texts, positions)}

    def rank(self, request: dict[str, Any], send: Send) -> dict[str, NDArray[Any]]:
        """The places `first` to `first + top - 1` of the ranking, and those of the items at the positions `also`.

        `position`, `place`, `score` (K,) and `moment` (K, 2), those of `also` behind the others; `counts` (T,), `low`,
        `high` and `median`: the scale of all scores; `following`: the score behind the last place, empty at the end.
        """
        texts = self._texts(request, send)
        scores = every_score(
            lambda items: self.trained.method.scores(texts, items)[0], self.items, self.device
        )
        first, last = request["first"] - 1, request["first"] - 1 + request["top"]
        order = top(scores[None], last + 1)[0][0]
        also = request["also"]
        positions = np.concatenate([order[first:last], np.array(also, np.int64)])
        places = np.concatenate([1 + np.arange(first, min(last, len(scores))), places_of(scores, also)])
        low, high = float(scores.min()), float(scores.max())
        counts, _ = np.histogram(scores, STRETCHES, (low, high if high > low else low + 1.0))
        return {
            "position": positions, "place": places, "score": scores[positions], "counts": counts,
            "low": np.array(low), "high": np.array(high), "median": np.median(scores),
            "following": scores[order[last : last + 1]], **self._moments(texts, positions),
        }  # fmt: skip

    def profile(self, request: dict[str, Any], send: Send) -> dict[str, NDArray[Any]]:
        """`score` (A, V) of the captions of a request with all items.

        The captions are `places` in the index, or `captions` as pairs of key and text whose features lie at `rows`.
        With `item`, one query as of `media`, the scores (A, 1) with that one.
        """
        if "captions" in request:
            rows = {
                stage: {key: (str(path), int(row)) for key, (path, row) in where.items()}
                for stage, where in request["rows"].items()
            }
            pairs = [(key, text) for key, text in request["captions"]]
            work = self.work / uuid.uuid4().hex
            try:
                work.mkdir()
                texts = self.trained.encode_texts(
                    pairs, self.beside["item"], self.features.add(rows).reader(), work / "packed"
                )
            finally:
                shutil.rmtree(work, ignore_errors=True)
        else:
            texts = self.texts.rows(request["places"], self.device)
        if "item" in request:
            items = self._items(request["item"], send)
            with torch.inference_mode():
                return {"score": self.trained.method.scores(texts, items).float().cpu().contiguous().numpy()}
        count = len(next(iter(texts.values())))
        return {
            "score": every_pair(
                lambda items: self.trained.method.scores(texts, items), count, self.items, self.device
            )
        }

    def own(self, request: dict[str, Any], send: Send) -> dict[str, NDArray[Any]]:
        """`place` and `score` (K,) of the captions at the positions `also`, among all captions for an item."""
        items = self._items(request, send)
        scores = every_score(
            lambda texts: self.trained.method.scores(texts, items)[:, 0], self.texts, self.device
        )
        return {"place": places_of(scores, request["also"]), "score": scores[request["also"]]}

    def media(self, request: dict[str, Any], send: Send) -> dict[str, NDArray[Any]]:
        """`position` and `score` (K,) of the best captions."""
        items = self._items(request, send)
        positions, scores = best(
            lambda texts: self.trained.method.scores(texts, items)[:, 0],
            self.texts,
            request["top"],
            self.device,
        )
        return {"position": positions, "score": scores}

    def explain(self, request: dict[str, Any], send: Send) -> dict[str, NDArray[Any]]:
        """The method's explanation of the query and each item at `positions`."""
        texts = self._texts(request, send)
        return self.trained.explain(texts, self.items.rows(request["positions"], self.device))

    def _moments(self, texts: Encoded, positions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """`moment` (K, 2): the best stretch of each item in shares of its length; {} if there are no clip scores."""
        if self._knows_moments is False:  # its explanation may cost more than its scores
            return {}
        arrays = self.trained.explain(texts, self.items.rows(positions.tolist(), self.device))
        self._knows_moments = CLIPS in arrays
        return {"moment": best_stretches(arrays[CLIPS])} if self._knows_moments else {}

    def encode(self, request: dict[str, Any], send: Send) -> dict[str, NDArray[Any]]:
        """The method's encodings of the `texts`, or of the `items`, of a request: named arrays (N, ...)."""
        encode = self._encoded_texts if request.get("texts") else self._encoded_items
        found = encode(request.get("texts") or request["items"], send)
        # NumPy has no bfloat16
        return {
            name: (values.float() if values.dtype == torch.bfloat16 else values).cpu().contiguous().numpy()
            for name, values in found.items()
        }

    def scores(self, request: dict[str, Any], send: Send) -> dict[str, NDArray[Any]]:
        """`score` (Q, V) of each of the `texts` with each of the `items`."""
        texts, items = (
            self._encoded_texts(request["texts"], send),
            self._encoded_items(request["items"], send),
        )
        with torch.inference_mode():
            return {"score": self.trained.method.scores(texts, items).float().cpu().contiguous().numpy()}

    def _texts(self, request: dict[str, Any], send: Send) -> Encoded:
        """The encoded caption of a request."""
        return self._encoded_texts([request], send)

    def _items(self, request: dict[str, Any], send: Send) -> Encoded:
        """The encoded item of a request."""
        return self._encoded_items([request], send)

    def _encoded_texts(self, queries: list[dict[str, Any]], send: Send) -> Encoded:
        """The encoded captions of queries: those of the index as they are, the others together."""

        def new(some: list[dict[str, Any]]) -> Encoded:
            units = [{**query, "name": "the query" if len(some) == 1 else query["text"]} for query in some]
            with self._features_of("captions", units, send) as (features, work):
                pairs = [(query["key"], query["text"]) for query in some]
                return self.trained.encode_texts(pairs, self.beside["item"], features.reader(), work)

        return _in_order(queries, lambda places: self.texts.rows(places, self.device), new)

    def _encoded_items(self, queries: list[dict[str, Any]], send: Send) -> Encoded:
        """The encoded items of queries: those of the index as they are, the others together."""

        def new(some: list[dict[str, Any]]) -> Encoded:
            with self._features_of("items", some, send) as (features, work):
                caption = self.beside["caption"], self.beside["text"]
                return self.trained.encode_items(
                    [query["key"] for query in some], caption, features.reader(), work
                )

        return _in_order(queries, lambda places: self.items.rows(places, self.device), new)

    @contextlib.contextmanager
    def _features_of(
        self, over: str, units: list[dict[str, Any]], send: Send
    ) -> Iterator[tuple[Features, Path]]:
        """Yield the features of queries beside stored ones, and an unused folder; both are removed at the end."""
        chain = self.chains[over]
        if over not in self._ready and chain.stages:
            send({"say": "loading " + ", ".join(stage["name"] for stage in chain.stages)}, {})
        self._ready.add(over)
        folder = self.work / uuid.uuid4().hex  # a later run removes it if this process is killed
        try:
            yield self.features.add(chain.run(units, folder)), folder / "packed"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _in_order(
    queries: Sequence[Mapping[str, Any]], stored: Callable[[list[int]], Encoded],
    new: Callable[[list[dict[str, Any]]], Encoded],
) -> Encoded:  # fmt: skip
    """The encodings of queries in their order: `stored` of those with a place in the index, `new` of the others.

    A new query that stands there twice is encoded once. Raises UserError where both kinds differ in shape, as
    encodings do that are padded to the longest of their split.
    """
    known = [query["place"] for query in queries if "place" in query]
    fresh = {query["key"]: dict(query) for query in queries if "place" not in query}
    parts = [stored(known)] if known else []
    parts += [new([*fresh.values()])] if fresh else []
    for name, values in parts[0].items():
        if any(part[name].shape[1:] != values.shape[1:] for part in parts):
            raise UserError(
                "some of these are of the indexed split and others are new, and their encodings differ in shape; "
                "encode the two kinds apart"
            )
    row = {key: len(known) + place for place, key in enumerate(fresh)}
    seen = iter(range(len(known)))
    order = [next(seen) if "place" in query else row[query["key"]] for query in queries]
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
