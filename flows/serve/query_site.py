"""The addresses of the failure browser: queries with their ranks, as a window, CSV or JSON; confusions and hubs."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from flows.serve import parameters
from flows.serve.ranks.choice import (
    MOST_K,
    Choice,
    chosen_columns,
    chosen_rows,
    crossed,
    pair_of,
)
from flows.serve.ranks.confusions import confusions, hubs
from flows.serve.ranks.table import NOWHERE, Column, RankTable
from flows.serve.ranks.tables import Tables

MOST_ROWS = 200  # of one window
MOST_PAIRS, USUAL_PAIRS = 200, 24  # confusions, or hubs, of one answer
MOST_ORDERS = 16  # orders that are kept, of 8 bytes a query
PART = 500  # rows that are written at once
ALWAYS_ASKED = "no-cache"  # a run may have been finished meanwhile


class QuerySite:
    """Answers over the rank tables of an experiment. first_split: the split of an address that names none."""

    def __init__(self, tables: Tables, first_split: str) -> None:
        self._tables, self._first_split = tables, first_split
        self._lock = threading.Lock()
        self._orders: OrderedDict[Choice, tuple[RankTable, NDArray[np.int64]]] = OrderedDict()

    @property
    def routes(self) -> list[Route]:
        """The addresses."""
        return [
            Route("/api/queries", self.queries),
            Route("/api/queries.csv", self.as_csv),
            Route("/api/queries.json", self.as_json),
            Route("/api/confusions", self.confused),
            Route("/api/hubs", self.attracting),
        ]

    async def queries(self, request: Request) -> Response:
        """A window of the chosen queries, with the number of all."""
        first = parameters.number(request, "from", 0, 0, 9_999_999)
        count = parameters.number(request, "count", 60, 1, MOST_ROWS)

        def answer() -> dict[str, Any]:
            table, choice = self._table(request), _choice(request)
            rows = self._rows(table, choice)
            shown = chosen_columns(table, choice)
            a, b = pair_of(table, choice)
            return {
                "split": table.rows.split, "splits": self._tables.splits, "total": len(rows),
                "of": len(table.rows.captions), "items": len(table.rows.keys), "from": first,
                "runs": [_run(column) for column in table.columns],
                "shown": [column.run.name for column in shown],
                "a": a.run.name if a else "", "b": b.run.name if b else "", "crossed": crossed(table, choice),
                "timed": bool(np.isfinite(table.seconds).any()), "failed": len(table.failed), "notes": table.notes,
                "rows": [_row(table, shown, row) for row in rows[first : first + count].tolist()],
            }  # fmt: skip

        found = await anyio.to_thread.run_sync(answer)
        return JSONResponse(found, headers={"cache-control": ALWAYS_ASKED})

    async def as_csv(self, request: Request) -> Response:
        """All chosen queries as comma-separated values, in the order that is shown."""
        table, rows, shown = await anyio.to_thread.run_sync(self._chosen, request)
        return _download(
            _csv_parts(table, shown, rows), "text/csv; charset=utf-8", f"queries-{table.rows.split}.csv"
        )

    async def as_json(self, request: Request) -> Response:
        """All chosen queries as a JSON array, in the order that is shown."""
        table, rows, shown = await anyio.to_thread.run_sync(self._chosen, request)
        return _download(
            _json_parts(table, shown, rows), "application/json", f"queries-{table.rows.split}.json"
        )

    async def confused(self, request: Request) -> Response:
        """The items that a run most often takes for others."""
        count = parameters.number(request, "count", USUAL_PAIRS, 1, MOST_PAIRS)

        def answer() -> dict[str, Any]:
            table = self._table(request)
            column = _column(table, request)
            pairs = confusions(table, column, count) if column else []
            return {
                "run": column.run.name if column else "", "split": table.rows.split, "runs": table.names,
                "pairs": [
                    {"right": _item(table, pair.right), "taken": _item(table, pair.taken), "count": pair.count,
                     "of": pair.of, "back": pair.back}
                    for pair in pairs
                ],
            }  # fmt: skip

        return JSONResponse(await anyio.to_thread.run_sync(answer), headers={"cache-control": ALWAYS_ASKED})

    async def attracting(self, request: Request) -> Response:
        """The hubs of a run with the number of queries that they attract."""
        count = parameters.number(request, "count", USUAL_PAIRS, 1, MOST_PAIRS)

        def answer() -> dict[str, Any]:
            table = self._table(request)
            column = _column(table, request)
            found = hubs(table, column, count) if column else []
            mean = float(column.times.mean()) if column else 0.0
            return {
                "run": column.run.name if column else "", "split": table.rows.split, "runs": table.names, "mean": mean,
                "hubs": [
                    {**_item(table, hub.item), "times": hub.times, "first": hub.first, "own": hub.own}
                    for hub in found
                ],
            }  # fmt: skip

        return JSONResponse(await anyio.to_thread.run_sync(answer), headers={"cache-control": ALWAYS_ASKED})

    def _table(self, request: Request) -> RankTable:
        return self._tables.table(parameters.text(request, "split") or self._first_split)

    def _chosen(self, request: Request) -> tuple[RankTable, NDArray[np.int64], list[Column]]:
        table, choice = self._table(request), _choice(request)
        return table, self._rows(table, choice), chosen_columns(table, choice)

    def _rows(self, table: RankTable, choice: Choice) -> NDArray[np.int64]:
        """The chosen rows in order. Scrolling asks for many windows of one order, so the last orders are kept."""
        with self._lock:
            kept = self._orders.get(choice)
        if kept is not None and kept[0] is table:
            return kept[1]
        rows = chosen_rows(table, choice)
        with self._lock:
            self._orders[choice] = table, rows
            self._orders.move_to_end(choice)
            while len(self._orders) > MOST_ORDERS:
                self._orders.popitem(last=False)
        return rows


def _choice(request: Request) -> Choice:
    return Choice(
        runs=parameters.names(request, "runs"), a=parameters.text(request, "a"), b=parameters.text(request, "b"),
        found=parameters.names(request, "found"), missed=parameters.names(request, "missed"),
        k=parameters.number(request, "k", 1, 1, MOST_K), words=parameters.span(request, "words"),
        seconds=parameters.span(request, "seconds"), hub=parameters.flag(request, "hub"),
        failed=parameters.flag(request, "failed"), item=parameters.text(request, "item"),
        taken=parameters.text(request, "taken"), text=parameters.text(request, "text"),
        sort=parameters.text(request, "sort") or "order", reverse=parameters.flag(request, "reverse"),
    )  # fmt: skip


def _column(table: RankTable, request: Request) -> Column | None:
    """The column of the parameter `run`, else the first one; None where no run is evaluated."""
    name = parameters.text(request, "run")
    return table.column(name) if name else next(iter(table.columns), None)


def _run(column: Column) -> dict[str, Any]:
    run = column.run
    ranked = column.rank[~np.isnan(column.rank)]
    return {
        "name": run.name, "method": run.method, "day": run.day, "differs": run.differs, "gallery": column.gallery,
        "queries": len(ranked), "recall": {k: round(100 * float((ranked <= k).mean()), 1) for k in (1, 5, 10)},
    }  # fmt: skip


def _item(table: RankTable, position: int) -> dict[str, str]:
    return {"item": table.rows.ids[position], "key": table.rows.keys[position].decode()}


def _row(table: RankTable, shown: list[Column], row: int) -> dict[str, Any]:
    item = int(table.rows.item[row])
    seconds = float(table.seconds[item])
    return {
        "row": row, "id": table.rows.caption_ids[row], "text": table.rows.captions[row], **_item(table, item),
        "words": int(table.rows.words[row]), "seconds": round(seconds, 1) if np.isfinite(seconds) else None,
        "ranks": [_rank(column, row) for column in shown], "first": [_first(table, column, row) for column in shown],
        "failed": table.failed.get(row, ""),
    }  # fmt: skip


def _rank(column: Column, row: int) -> float | None:
    rank = float(column.rank[row])
    return None if np.isnan(rank) else round(rank, 1)


def _first(table: RankTable, column: Column, row: int) -> dict[str, Any] | None:
    position = int(column.first[row, 0])
    return None if position == NOWHERE else _item(table, position) | {"hub": bool(column.hub[position])}


def _download(parts: Iterator[str], kind: str, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": ALWAYS_ASKED}
    return StreamingResponse(parts, media_type=kind, headers=headers)


def _csv_parts(table: RankTable, shown: list[Column], rows: NDArray[np.int64]) -> Iterator[str]:
    ranks = [f"rank {column.run.name}" for column in shown]
    firsts = [f"first {column.run.name}" for column in shown]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["caption", "text", "item", "words", "seconds", *ranks, *firsts, "failed"])
    for start in range(0, max(len(rows), 1), PART):
        for row in rows[start : start + PART].tolist():
            one = _row(table, shown, row)
            firsts = [first["item"] if first else "" for first in one["first"]]
            writer.writerow(
                [
                    one["id"],
                    one["text"],
                    one["item"],
                    one["words"],
                    one["seconds"],
                    *one["ranks"],
                    *firsts,
                    one["failed"],
                ]
            )
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _json_parts(table: RankTable, shown: list[Column], rows: NDArray[np.int64]) -> Iterator[str]:
    names = [column.run.name for column in shown]
    for number, row in enumerate(rows.tolist()):
        one = _row(table, shown, row)
        ranks = dict(zip(names, one.pop("ranks"), strict=True))
        firsts = dict(
            zip(names, (first["item"] if first else None for first in one.pop("first")), strict=True)
        )
        yield ("[" if number == 0 else ",") + "\n" + json.dumps({**one, "ranks": ranks, "first": firsts})
    yield "\n]\n" if len(rows) else "[]\n"
