"""The process that answers searches: it holds a trained method, the index, and the networks that encode queries."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flows.search.chain import Chain, Features
from flows.search.index import ITEMS, TEXTS
from pipeline.child import Send
from trainers.measure.search import MEMORY_MB, Encodings, Trained, best, best_stretches
from trainers.method import Encoded

CLIPS = "clip_scores"  # name of the scores of equal stretches of an item, among the arrays of a method's `explain`


def serve(request: dict[str, Any], send: Send) -> None:
    """Entry of the process: answers one request, and keeps what its `about` describes loaded.

    A search and an explanation are answered by one reply with arrays; before it come `{"say": sentence}`.
    """
    about = json.dumps(request["about"], sort_keys=True)
    answer = {"search": Loaded.search, "media": Loaded.media, "explain": Loaded.explain}[request["ask"]]
    send({}, answer(_loaded(about), request, send))


@functools.lru_cache(maxsize=1)  # each process serves one project and split
def _loaded(about: str) -> Loaded:
    return Loaded(json.loads(about))


class Loaded:
    """Everything that is needed to answer. A request holds a `place` in the index, or the text or file to encode.

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

    def _texts(self, request: dict[str, Any], send: Send) -> Encoded:
        """The encoded caption of a request."""
        if "place" in request:
            return self.texts.rows([request["place"]], self.device)
        unit = {"key": request["key"], "name": "the query", "text": request["text"]}
        with self._features_of("captions", unit, send) as (features, work):
            return self.trained.encode_text(
                request["text"], unit["key"], self.beside["item"], features.reader(), work
            )

    def _items(self, request: dict[str, Any], send: Send) -> Encoded:
        """The encoded item of a request."""
        if "place" in request:
            return self.items.rows([request["place"]], self.device)
        unit = {"key": request["key"], "name": request["name"], "media": request["media"]}
        with self._features_of("items", unit, send) as (features, work):
            return self.trained.encode_item(
                unit["key"], self.beside["text"], self.beside["caption"], features.reader(), work
            )

    @contextlib.contextmanager
    def _features_of(self, over: str, unit: dict[str, Any], send: Send) -> Iterator[tuple[Features, Path]]:
        """Yield the features of a query beside stored ones, and an unused folder; both are removed at the end."""
        chain = self.chains[over]
        if over not in self._ready and chain.stages:
            send({"say": "loading " + ", ".join(stage["name"] for stage in chain.stages)}, {})
        self._ready.add(over)
        folder = self.work / uuid.uuid4().hex  # a later run removes it if this process is killed
        try:
            yield self.features.add(chain.run(unit, folder)), folder / "packed"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
