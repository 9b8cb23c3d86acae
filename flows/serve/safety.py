"""The requests that are allowed, and the headers of every answer; independent of searching.

A web page from elsewhere can send requests to a server on this machine. It cannot read this one's answers: the name it
calls us by (`Host`, which a hostile name server can point here) must be one of ours, and what a page of another origin
asks for is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_TARGET_BYTES = (
    8192  # of a path with its query: a query of 1000 characters takes 6000 where all are escaped
)
MOST_HEADER_BYTES = 16 << 10
SLOW_SECONDS = 15.0  # for sending a request
PAGES = {"/": "index.html", "/queries": "queries.html", "/items": "items.html", "/map": "map.html"}
REPORT = "/report"  # a page of its own, which carries its styles and pictures in itself
UPLOAD = "/api/upload"  # the only address that takes a body
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self'; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)


def allowed_hosts(names: Collection[str], port: int) -> frozenset[str]:
    """What a `Host` header may say: the names with the port; without it too where it is HTTP's own."""
    with_port = {f"{name.lower()}:{port}" for name in names}
    return frozenset(with_port | {name.lower() for name in names} if port == 80 else with_port)


class Guard:
    """Refuses everything but reading requests from our own page, and adds the headers to every answer.

    One address takes a file that our own page sends, of at most `most_body` bytes; nothing is stored of it.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], most_body: int = 0) -> None:
        self._app, self._hosts, self._most_body = app, frozenset(hosts), most_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # a web socket is closed by not being accepted

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if scope["path"] == REPORT:
                    headers["content-security-policy"] = REPORT_POLICY
            await send(message)

        refused = self._refused(scope)
        await (refused or self._app)(scope, receive, guarded)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        """The answer that refuses a request; None if the request is allowed."""
        headers = Headers(scope=scope)
        sends = scope["method"] == "POST" and scope["path"] == UPLOAD
        if scope["method"] not in ("GET", "HEAD") and not sends:
            return refusal(405, "this server only answers GET and HEAD", allow="GET, HEAD")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return refusal(421, "this server is not called by that name; --allow-host NAME allows one")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MOST_TARGET_BYTES:
            return refusal(414, f"the address is longer than {MOST_TARGET_BYTES} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            return refusal(431, f"the headers are longer than {MOST_HEADER_BYTES} bytes")
        if refused := self._refused_body(headers, sends):
            return refused
        return (
            None
            if self._ours(scope, headers)
            else refusal(403, "pages of other sites may not ask this server")
        )

    def _refused_body(self, headers: Headers, sends: bool) -> JSONResponse | None:
        """The answer that refuses the body of a request; `sends`: it is the one that may have a body.

        Its origin must be given: browsers send it with every POST, so that only a page of ours can send a file.
        """
        length = headers.get("content-length", "0")
        if not sends:
            alone = length == "0" and "transfer-encoding" not in headers
            return None if alone else refusal(413, "a request has no body here")
        if "transfer-encoding" in headers or not (length.isascii() and length.isdigit()):
            return refusal(411, "the size of the file is not given")
        if len(length) > 12 or int(length) > self._most_body:
            return refusal(413, f"the file is larger than {self._most_body >> 20} MB")
        if "origin" not in headers:
            return refusal(403, "only a page of this server may send a file")
        return None

    def _ours(self, scope: Scope, headers: Headers) -> bool:
        """Whether our own page asks, or nobody's: a typed address, or a link that was followed to one of the pages."""
        origin = headers.get("origin")
        if origin is not None and origin.lower().removeprefix("http://") not in self._hosts:
            return False
        site = headers.get("sec-fetch-site", "none")
        followed = scope["path"] in (*PAGES, REPORT) and headers.get("sec-fetch-mode") == "navigate"
        framed = headers.get("sec-fetch-dest") not in (None, "document")
        return site in ("same-origin", "none") or (followed and not framed)


def refusal(status: int, sentence: str, **headers: str) -> JSONResponse:
    """An answer that is a sentence."""
    return JSONResponse(
        {"error": sentence}, status, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


class PromptProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which closes connections whose request does not come.

    uvicorn bounds the time between requests, not that for the first one or for half of one, so that idle connections
    could take all places.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to watch."""
        super().connection_made(transport)
        self._watch(None)

    def _watch(self, before: Any) -> None:
        """Close where nothing has come since the last look; look again later otherwise."""
        if self.transport.is_closing():
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and before is not None and before == (id(self.cycle),):
            self.transport.close()
            return
        self.loop.call_later(SLOW_SECONDS, self._watch, (id(self.cycle),) if idle else None)
