"""The report of the experiment at an address of its own, so that a link from a search leads back to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from flows.reporting import REPORT
from pipeline.store.store import RECORD, Store

PAGE = "report.html"
USUAL_SERVER = "http://127.0.0.1:8600/"  # where a report that was opened as a file expects this server


class ReportSite:
    """Answers with the newest report of an experiment. It may be drawn anew while the server runs."""

    def __init__(self, store: Store, experiment: str) -> None:
        self._store, self._experiment = store, experiment

    @property
    def routes(self) -> list[Route]:
        """The address."""
        return [Route("/report", self.report)]

    @property
    def exists(self) -> bool:
        """Whether there is a report."""
        return newest_report(self._store, self._experiment) is not None

    async def report(self, request: Request) -> Response:
        """The page; its links to a server on the usual port lead to this one."""
        body = await anyio.to_thread.run_sync(self._read)
        if body is None:
            raise HTTPException(404, "the experiment has no report; `crossreel report` draws it")
        return HTMLResponse(body, headers={"cache-control": "no-cache"})

    def _read(self) -> str | None:
        path = newest_report(self._store, self._experiment)
        try:
            text = path.read_text(encoding="utf-8") if path else None
        except OSError:  # removed at this moment
            return None
        return text.replace(f'href="{USUAL_SERVER}', 'href="/') if text else None


def newest_report(store: Store, experiment: str) -> Path | None:
    """The page of the report that was drawn last for an experiment, None if there is none."""
    found = []
    for record in (store.root / "runs" / REPORT).glob(f"*/{RECORD}"):
        about = _record(record)
        page = record.parent / PAGE
        if about.get("experiment", experiment) == experiment and page.is_file():
            found.append((float(about.get("made", 0.0)), page))
    return max(found)[1] if found else None


def _record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # being written or removed at this moment
        return {"experiment": None}
