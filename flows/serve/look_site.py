"""The addresses for looking around without a query: items, similar items, captions by rank, the scale, the map."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flows.search.calibration import Calibration
from flows.search.searcher import Searcher
from flows.serve import parameters
from flows.serve.catalogue import Catalogue
from flows.serve.likeness import alike, has_umap, principal, profiles, umap_points
from flows.serve.media import Gallery
from flows.serve.ranks.table import RankTable
from flows.serve.ranks.tables import Tables
from flows.serve.searching import Searchers
from pipeline.errors import UserError

MOST_ITEMS = 60  # of one page of items
MOST_ALIKE = 24
MOST_CAPTIONS = 50
MOST_KEPT = 8  # calibrations and layouts that are kept, of 32 MB at most each
MOST_POINTS = 20_000  # of a map; a larger gallery is thinned evenly
MISSED = 10  # a query is missed, for the colours of the map, if its right item is not within this rank
SHORTLY = "private, max-age=60"

Points = NDArray[np.float32]


@dataclass(frozen=True)
class Calibrated:
    """The calibration of a method in a gallery, with the items of its columns and their unit vectors (V, A)."""

    calibration: Calibration
    keys: list[str]
    vectors: Points


class LookSite:
    """Answers about items and galleries, from what a method says of all of them."""

    def __init__(self, catalogue: Catalogue, gallery: Gallery, searchers: Searchers, tables: Tables) -> None:
        self._catalogue, self._gallery, self._searchers, self._tables = catalogue, gallery, searchers, tables
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    @property
    def routes(self) -> list[Route]:
        """The addresses."""
        return [
            Route("/api/items", self.items),
            Route("/api/similar", self.similar),
            Route("/api/captions", self.captions),
            Route("/api/scale", self.scale),
            Route("/api/map", self.map),
        ]

    async def items(self, request: Request) -> Response:
        """A page of the items of a split, in the order of the manifest, whose id or caption holds a text."""
        split = parameters.text(request, "split") or self._catalogue.splits[0].name
        word = parameters.text(request, "text")
        first = parameters.number(request, "from", 0, 0, 9_999_999)
        count = parameters.number(request, "count", 24, 1, MOST_ITEMS)

        def answer() -> dict[str, Any]:
            table = self._tables.table(split)
            rows = table.rows
            kept = np.ones(len(rows.keys), np.bool_)
            if word:
                kept = rows.ids.containing(word)[: len(kept)]
                kept[rows.item[rows.captions.containing(word)]] = True
            chosen = np.flatnonzero(kept & (rows.keys != b""))
            return {
                "split": split, "splits": self._tables.splits, "total": len(chosen), "from": first,
                "items": [self._card(rows.keys[n].decode()) for n in chosen[first : first + count].tolist()],
            }  # fmt: skip

        return JSONResponse(await anyio.to_thread.run_sync(answer), headers={"cache-control": SHORTLY})

    async def similar(self, request: Request) -> Response:
        """The items that a method takes for most like one."""
        name, key = self._searched(request), self._known(request)
        count = parameters.number(request, "count", 12, 1, MOST_ALIKE)
        found = await self._calibrated(name)
        if key not in found.keys:
            raise UserError(f"the gallery of the split {name[1]!r} does not have this item")
        near = alike(found.vectors, found.keys.index(key), count)
        items = [{**self._card(found.keys[place]), "likeness": round(value, 3)} for place, value in near]
        return JSONResponse({"key": key, "method": name[0], "split": name[1], "items": items})

    async def captions(self, request: Request) -> Response:
        """The captions of an item, each at its place among all captions of the split for this item."""
        name, key = self._searched(request), self._known(request)
        hits, total = await self._searchers.ask(
            name, lambda searcher: (searcher.own_captions(key), searcher.caption_count)
        )
        rows = [
            {
                "place": hit.place,
                "score": hit.score,
                "text": hit.text,
                "id": hit.caption,
                "moment": hit.moment,
            }
            for hit in hits[:MOST_CAPTIONS]
        ]
        return JSONResponse({"key": key, "method": name[0], "split": name[1], "of": total, "captions": rows})

    async def scale(self, request: Request) -> Response:
        """The best scores that captions of other items get, in ascending order: what a score is worth."""
        name = self._searched(request)
        found = (await self._calibrated(name)).calibration
        best = [float(f"{value:.5g}") for value in found.best.tolist()]
        return JSONResponse(
            {"method": name[0], "split": name[1], "captions_of": found.split, "best": best},
            headers={"cache-control": SHORTLY},
        )

    async def map(self, request: Request) -> Response:
        """A point for each item of the gallery; with `every`, of all galleries that the same captions calibrate.

        Each further gallery has a searching process of its own, which may have to be started.
        """
        name = self._searched(request)
        by = parameters.text(request, "by") or "pca"
        if by not in ("pca", "umap"):
            raise UserError(f"there is no map by {by!r}; pca and umap are possible")
        if by == "umap" and not has_umap():
            raise UserError("UMAP is not installed here; `pip install umap-learn` brings it")
        found = await self._calibrated(name)
        others = [(name[0], split) for split in self._splits(name[0]) if split != name[1]]
        galleries = [(name[1], found)]
        for other in (
            others if found.calibration.split == "train" and parameters.flag(request, "every") else ()
        ):
            more = await self._calibrated(other)
            if more.vectors.shape[1] == found.vectors.shape[1] and more.calibration.split == "train":
                galleries.append((other[1], more))
        drawn = await anyio.to_thread.run_sync(self._drawn, name, by, galleries)
        return JSONResponse(drawn, headers={"cache-control": SHORTLY})

    def _drawn(
        self, name: tuple[str, str], by: str, galleries: list[tuple[str, Calibrated]]
    ) -> dict[str, Any]:
        vectors = np.concatenate([found.vectors for _, found in galleries])
        keys = [key for _, found in galleries for key in found.keys]
        splits = [split for split, found in galleries for _ in found.keys]
        if len(keys) > MOST_POINTS:
            kept = np.linspace(0, len(keys) - 1, MOST_POINTS).round().astype(int).tolist()
            vectors, keys = vectors[kept], [keys[n] for n in kept]
            splits = [splits[n] for n in kept]
        points, explained = self._remembered(
            ("points", *name, by, str(len(galleries))),
            lambda: (umap_points(vectors), None) if by == "umap" else principal(vectors),
        )
        facts = {split: self._facts(split, name[0]) for split, _ in galleries}
        rows = []
        for key, split, (x, y) in zip(keys, splits, points.tolist(), strict=True):
            hub, missed, of = facts[split].get(key, (False, None, None))
            item = self._gallery.items.get(key)
            rows.append({
                "key": key, "item": item.id if item else key, "split": split, "x": round(x, 4), "y": round(y, 4),
                "hub": hub, "missed": missed, "of": of,
            })  # fmt: skip
        return {
            "method": name[0], "split": name[1], "by": by, "umap": has_umap(), "missed_within": MISSED,
            "explained": explained, "points": rows,
        }  # fmt: skip

    def _facts(self, split: str, run: str) -> dict[str, tuple[bool, int | None, int | None]]:
        """For each item whether it is a hub, and how many of how many queries of it a run misses."""
        table = self._tables.table(split)
        if run not in table.names:
            return {}
        return _facts_of(table, run)

    async def _calibrated(self, name: tuple[str, str]) -> Calibrated:
        """The calibration of a method in a gallery, made once and kept while others are not asked for more."""
        key = ("calibration", *name)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                kept: Calibrated = self._kept[key]
                return kept

        def call(searcher: Searcher) -> Calibrated:
            def make() -> Calibrated:
                found = searcher.calibrate()
                return Calibrated(found, searcher.item_keys, profiles(found.scores))

            return self._remembered(key, make)

        return await self._searchers.ask(name, call)

    def _remembered(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return made

    def _card(self, key: str) -> dict[str, Any]:
        item = self._gallery.items.get(key)
        return {
            "key": key, "item": item.id if item else key, "kind": self._gallery.kind(key),
            "captions": [caption.text for caption in item.captions[:1]] if item else [],
        }  # fmt: skip

    def _searched(self, request: Request) -> tuple[str, str]:
        return self._catalogue.named(
            request.query_params.get("method", ""), request.query_params.get("split", "")
        )

    def _splits(self, method: str) -> tuple[str, ...]:
        return next(one.splits for one in self._catalogue.methods if one.name == method)

    def _known(self, request: Request) -> str:
        key = request.query_params.get("key", "")
        if key not in self._gallery.items:
            raise HTTPException(404, "no item of the corpus has that key")
        return key


def _facts_of(table: RankTable, run: str) -> dict[str, tuple[bool, int | None, int | None]]:
    column, rows = table.column(run), table.rows
    ranked = ~np.isnan(column.rank)
    size = len(rows.keys)
    of = np.bincount(rows.item[ranked], minlength=size)
    missed = np.bincount(rows.item[ranked & (column.rank > MISSED)], minlength=size)
    return {
        key: (bool(column.hub[place]), int(missed[place]), int(of[place]))
        for key, place in rows.position.items()
    }
