"""The web application: its addresses and the answer of each. All of them only read."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from flows.search.hits import CaptionHit, Hit, Moment, Ranked
from flows.search.query import MOST_CHARACTERS, require_text
from flows.search.searcher import Searcher
from flows.serve import parameters
from flows.serve.catalogue import Catalogue
from flows.serve.media import Gallery
from flows.serve.safety import PAGES, UPLOAD, Guard, refusal
from flows.serve.searching import LIMIT_SECONDS, RETRY_SECONDS, Busy, Searchers, TooSlow
from flows.serve.uploads import AT_ONCE, MOST_BYTES, TooLarge, received
from pipeline.child import ChildDied
from pipeline.corpus.manifest import Caption
from pipeline.errors import ItemError, UserError
from pipeline.store.segments import Damaged

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml", ".json": "application/json", "": "text/plain; charset=utf-8",
}  # fmt: skip
KEY = "{key:str}"
DIGITS, KEY_LETTERS = frozenset("0123456789abcdef"), 32
MOST_TOP = 50
MOST_FIRST = 1_000_000  # largest first place of a part of a ranking
CAPTIONS_SHOWN = 5  # captions of each result; the page of an item has more
CAPTIONS_OF_ITEM = 50
MOST_VALUES = 4096  # largest array of an explanation; longer ones are left out
KEPT = "private, max-age=3600"  # the content of a key does not change while the server runs
SHORTLY = "private, max-age=60"
ALWAYS_ASKED = "no-cache"  # browsers revalidate the page's own files


def application(
    catalogue: Catalogue, gallery: Gallery, searchers: Searchers, hosts: Collection[str],
    more: Sequence[Route] = (), report: Callable[[], bool] = lambda: False,
) -> ASGIApp:  # fmt: skip
    """The whole application, which answers to the names in `hosts`; it closes gallery and searchers when it ends.

    more: further addresses. report: whether there is a report at `/report` now.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(searchers.close)
        await anyio.to_thread.run_sync(gallery.close)

    site = _Site(catalogue, gallery, searchers, report)
    app = Starlette(
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _http_error, UserError: _users_mistake, ItemError: _item_error, Damaged: _damaged,
            Busy: _busy, TooSlow: _too_slow, ChildDied: _died, TooLarge: _too_large,
        },
        routes=[
            *(Route(path, partial(site.static, name=name)) for path, name in PAGES.items()),
            Route("/static/{name:path}", site.static),
            Route("/api/about", site.about),
            Route("/api/loading", site.loading),
            Route("/api/search", site.search),
            Route("/api/explain", site.explain),
            Route(f"/api/item/{KEY}", site.item),
            Route(UPLOAD, site.upload, methods=["POST"]),
            Route(f"/media/{KEY}", site.media),
            Route(f"/points/{KEY}", site.points),
            Route(f"/thumb/{KEY}/{{number:str}}", site.picture),
            Route(f"/view/{KEY}/{{number:str}}", site.picture),
            *more,
        ],
    )  # fmt: skip
    return Guard(app, hosts, MOST_BYTES)


class _Site:
    """The answers of the addresses."""

    def __init__(
        self, catalogue: Catalogue, gallery: Gallery, searchers: Searchers, report: Callable[[], bool]
    ) -> None:
        self._catalogue, self._gallery, self._searchers = catalogue, gallery, searchers
        self._report, self._uploads = report, 0
        self._static = _static_files()

    async def static(self, request: Request, name: str = "") -> Response:
        """A file of the page, from memory."""
        found = self._static.get(name or request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        body, kind, tag = found
        headers = {"etag": tag, "cache-control": ALWAYS_ASKED}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=kind, headers=headers)

    async def about(self, request: Request) -> Response:
        """The catalogue: methods and splits that can be searched, and the bounds of a request."""
        bounds = {"most_characters": MOST_CHARACTERS, "most_top": MOST_TOP, "most_bytes": MOST_BYTES}
        about = {
            "report": await anyio.to_thread.run_sync(self._report),
            "corpus_splits": self._gallery.splits,
        }
        return JSONResponse(self._catalogue.as_json() | bounds | about)

    async def loading(self, request: Request) -> Response:
        """Which searchers are loaded, which are loading since when, and how many fit into memory."""
        kept, room = self._searchers.room()
        states = {
            f"{method.name} {split}": asdict(self._searchers.loading((method.name, split)))
            for method in self._catalogue.methods
            for split in method.splits
        }
        return JSONResponse(
            {"kept": kept, "room": room, "searchers": states}, headers={"cache-control": "no-store"}
        )

    async def search(self, request: Request) -> Response:
        """The ranking of a sentence from a place on, with its scale, the right items, and an item that is asked for."""
        method, split = self._searched(request)
        text, top = require_text(request.query_params.get("q", "")), _top(request)
        first = parameters.number(request, "from", 1, 1, MOST_FIRST)
        key = request.query_params.get("key", "")
        item = self._known(key) if key else ""

        def call(searcher: Searcher) -> Ranked:
            return searcher.rank(text, top, first, item)

        found = await self._searchers.ask((method, split), call)
        hits = [*found.hits, *found.right]
        return JSONResponse(
            {
                "query": text, "method": method, "split": split, "gallery": found.gallery,
                "scale": asdict(found.scale), "following": found.following,
                "hits": [self._hit(hit, found) for hit in found.hits],
                "right": [self._hit(hit, found) for hit in found.right],
                "asked": self._hit(found.asked, found) if found.asked else None,
                "caption": bool(found.right), "shown": len({hit.key for hit in hits}),
            },
            headers={"cache-control": SHORTLY},
        )  # fmt: skip

    async def upload(self, request: Request) -> Response:
        """The captions that fit a file best; the file is the body of the request."""
        method, split = self._searched(request)
        top = _top(request)
        if self._uploads >= AT_ONCE:
            raise Busy
        self._uploads += 1
        try:
            async with received(request) as path:

                def call(searcher: Searcher) -> list[CaptionHit]:
                    try:
                        return searcher.search_media(path, top)
                    except ItemError as error:  # a decoder's words name the temporary file
                        raise ItemError(error.item, error.reason.replace(str(path), "the file")) from None

                hits = await self._searchers.ask((method, split), call)
        finally:
            self._uploads -= 1
        rows = [hit.as_json() | {"kind": self._gallery.kind(hit.item_key)} for hit in hits]
        return JSONResponse(
            {"method": method, "split": split, "hits": rows}, headers={"cache-control": "no-store"}
        )

    async def explain(self, request: Request) -> Response:
        """The method's explanation of the match of a sentence with an item."""
        method, split = self._searched(request)
        text, key = (
            require_text(request.query_params.get("q", "")),
            self._known(request.query_params.get("key", "")),
        )

        def call(searcher: Searcher) -> dict[str, NDArray[Any]]:
            return searcher.explain(text, [key])

        said = await self._searchers.ask((method, split), call)
        arrays = {name: _plain(values[0]) for name, values in said.items() if values[0].size <= MOST_VALUES}
        return JSONResponse(
            {"query": text, "method": method, "arrays": arrays}, headers={"cache-control": SHORTLY}
        )

    async def item(self, request: Request) -> Response:
        """An item with its captions and the addresses of its pictures."""
        key = self._known(request.path_params["key"])
        item, kind = self._gallery.items[key], self._gallery.kind(key)
        strip = await anyio.to_thread.run_sync(self._gallery.strip, key)
        address = "/thumb" if kind == "video" else "/view"
        return JSONResponse(
            {
                "key": key, "item": item.id, "kind": kind, "seconds": strip.seconds, "reason": strip.reason,
                "pictures": [
                    {"source": f"{address}/{key}/{n}", "width": p.width, "height": p.height, "at": p.at}
                    for n, p in enumerate(strip.pictures)
                ],
                "captions": [
                    {"text": caption.text, "start": caption.start, "end": caption.end}
                    for caption in item.captions[:CAPTIONS_OF_ITEM]
                ],
                "more_captions": max(0, len(item.captions) - CAPTIONS_OF_ITEM),
            },
            headers={"cache-control": KEPT},
        )  # fmt: skip

    async def media(self, request: Request) -> Response:
        """The compressed video of an item, or the part of it that a `Range` header names."""
        path = self._gallery.video(self._known(request.path_params["key"]))
        if path is None or not path.is_file():
            raise HTTPException(404, "the store has no video of it")
        return FileResponse(path, media_type="video/mp4", headers={"cache-control": KEPT})

    async def points(self, request: Request) -> Response:
        """A cloud: float32 x y z of all points, then uint8 r g b of all."""
        key = self._known(request.path_params["key"])
        body = await anyio.to_thread.run_sync(self._gallery.points, key)
        if body is None:
            raise HTTPException(404, "the store has no point cloud of it")
        return Response(body, media_type="application/octet-stream", headers={"cache-control": KEPT})

    async def picture(self, request: Request) -> Response:
        """One picture of an item's strip."""
        key, number = self._known(request.path_params["key"]), request.path_params["number"]
        kind = "video" if request.url.path.startswith("/thumb/") else "cloud"
        if kind != self._gallery.kind(key) or number not in "0123456789" or len(number) != 1:
            raise HTTPException(404)
        pictures = (await anyio.to_thread.run_sync(self._gallery.strip, key)).pictures
        if int(number) >= len(pictures):
            raise HTTPException(404, "it has no such picture")
        return Response(pictures[int(number)].jpeg, media_type="image/jpeg", headers={"cache-control": KEPT})

    def _searched(self, request: Request) -> tuple[str, str]:
        """The method and split of a request, by default the first ones. Raises UserError for unknown ones."""
        return self._catalogue.named(
            request.query_params.get("method", ""), request.query_params.get("split", "")
        )

    def _known(self, key: str) -> str:
        """The key, if it is that of an item; else raises 404."""
        if len(key) != KEY_LETTERS or not DIGITS.issuperset(key) or key not in self._gallery.items:
            raise HTTPException(404, "no item of the corpus has that key")
        return key

    def _hit(self, hit: Hit, found: Ranked) -> dict[str, Any]:
        """A result. `right`: whether the query is a caption of it. `percentile`: share of the gallery below it.

        `caption` is the one whose moment overlaps most with the best moment, else the first one; `at` its seconds.
        """
        below = (found.gallery - hit.place) / max(1, found.gallery - 1)
        right = any(hit.key == one.key for one in found.right)
        result = hit.as_json() | {"kind": self._gallery.kind(hit.key), "right": right}
        item = self._gallery.items.get(hit.key)
        shown = caption_at(item.captions, hit.moment) if item and hit.captions else None
        timed = shown and hit.moment and shown.start is not None and shown.end is not None
        at = [shown.start, shown.end] if shown and timed else None
        return result | {
            "captions": list(hit.captions[:CAPTIONS_SHOWN]), "caption": shown.text if shown else "", "at": at,
            "percentile": round(100 * below, 2),
        }  # fmt: skip


def caption_at(captions: Sequence[Caption], moment: Moment | None) -> Caption | None:
    """The caption whose seconds overlap most with a moment, as a share of both together; else the first one."""
    if not captions:
        return None

    def overlap(caption: Caption) -> float:
        if moment is None or caption.start is None or caption.end is None:
            return 0.0
        common = min(moment[1], caption.end) - max(moment[0], caption.start)
        return common / max(max(moment[1], caption.end) - min(moment[0], caption.start), 1e-9)

    best = max(captions, key=overlap)
    return best if overlap(best) > 0 else captions[0]


def _static_files() -> dict[str, tuple[bytes, str, str]]:
    """All files of the page by name: content, type, tag."""
    out = {}
    for path in sorted(file for file in STATIC.rglob("*") if file.is_file()):
        body = path.read_bytes()
        tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
        out[path.relative_to(STATIC).as_posix()] = (body, TYPES[path.suffix], tag)
    return out


def _top(request: Request) -> int:
    """The number of results of a request. Raises UserError for anything but a number from 1 to MOST_TOP."""
    text = request.query_params.get("top", "10")
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MOST_TOP):
        raise UserError(f"so many results are not possible; from 1 to {MOST_TOP} are")
    return int(text)


def _plain(values: NDArray[Any]) -> Any:
    """An array as nested lists of five digits; values that are not finite become None."""
    if values.dtype.kind != "f":
        return values.tolist()
    rounded = np.vectorize(
        lambda value: float(f"{value:.5g}") if np.isfinite(value) else None, otypes=[object]
    )
    return rounded(values.astype(np.float64)).tolist() if values.size else []


def _error_answer(status: int, sentence: str) -> Callable[[Request, Exception], JSONResponse]:
    """A handler that answers an error with a fixed sentence, which names nothing of this machine."""

    def answer(request: Request, error: Exception) -> JSONResponse:
        return refusal(status, sentence)

    return answer


def _http_error(request: Request, error: Exception) -> JSONResponse:
    known = error if isinstance(error, HTTPException) else HTTPException(500)
    detail = known.detail if known.detail != HTTPStatus(known.status_code).phrase else "there is nothing here"
    return refusal(known.status_code, detail)


def _users_mistake(request: Request, error: Exception) -> JSONResponse:
    return refusal(400, str(error))


def _item_error(request: Request, error: Exception) -> JSONResponse:
    return refusal(400, error.reason if isinstance(error, ItemError) else str(error))


def _busy(request: Request, error: Exception) -> JSONResponse:
    return refusal(
        503, "too many searches are waiting; try again in a moment", retry_after=str(RETRY_SECONDS)
    )


_damaged = _error_answer(500, "it is damaged in the store; `crossreel store verify --repair` drops it")
_too_large = _error_answer(413, f"the file is larger than {MOST_BYTES >> 20} MB")
_too_slow = _error_answer(504, f"the search took longer than {LIMIT_SECONDS:.0f} s")
_died = _error_answer(503, "the process that searches has died, out of memory perhaps; try again")
