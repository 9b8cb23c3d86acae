"""From an opened experiment to a server that answers: indexes, socket, uvicorn."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from flows.project import FailedUnit, Project
from flows.results.wording import without_places
from flows.search.index import trained_methods
from flows.search.searched import Searched
from flows.search.searcher import Searcher
from flows.serve.app import application
from flows.serve.catalogue import (
    Catalogue,
    Searches,
    catalogue_of,
    read_applied,
    read_searchable,
)
from flows.serve.durations import seconds_of
from flows.serve.look_site import LookSite
from flows.serve.media import Gallery
from flows.serve.query_site import QuerySite
from flows.serve.ranks.table import reasons_by_id
from flows.serve.ranks.tables import Tables
from flows.serve.report_site import ReportSite
from flows.serve.safety import LOOPBACK_NAMES, MOST_HEADER_BYTES, PromptProtocol, allowed_hosts
from flows.serve.searching import Searchers
from flows.trained.finished import PICTURES
from flows.trained.naming import named_digest
from flows.trained.runs import SEPARATOR, find_run
from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Corpus
from pipeline.errors import UserError
from pipeline.run.execute import OnProgress
from pipeline.run.plan import State
from pipeline.store.store import Store

MOST_CONNECTIONS = 600
STOP_SECONDS = 3
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Address:
    """Where the server listens, and by which names it may be called there."""

    host: str
    port: int
    names: tuple[str, ...] = ()

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        return self.host in LOOPBACK

    def require_names(self) -> None:
        """Raise UserError where others can reach it, but nobody said by which name."""
        if not self.is_loopback and not self.names:
            raise UserError(
                f"--host {self.host} lets other machines in; say by which name they call this one: --allow-host NAME"
            )

    def hosts(self, port: int) -> frozenset[str]:
        """What a `Host` header may say."""
        return allowed_hosts((*LOOPBACK_NAMES, *self.names), port)

    def listen(self) -> socket.socket:
        """The listening socket. Raises UserError where the port is taken, or the address is not this machine's."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=MOST_CONNECTIONS)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {self.port} is taken; name another one with --port, 0 for any"
                ) from None
            raise UserError(
                f"{self.host}:{self.port} cannot be listened on: {error.strerror or error}"
            ) from None


@dataclass(frozen=True)
class Prepared:
    """What can be searched, with the index of every method's usual run made."""

    catalogue: Catalogue
    searches: Searches


def prepare(
    project: Project, splits: Sequence[str], say: Say, runs: Sequence[str] = (), corpus: Path | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Prepared:  # fmt: skip
    """What can be searched, after the indexes of it are made. Raises UserError where nothing can be.

    runs: METHOD@DIGEST of the runs that answer for their methods. corpus: a manifest to which the runs were applied, of
    which `splits` then names at most one split; None for the experiment's own.
    """
    if not trained_methods(project.stages):
        raise UserError("the experiment names no methods, so there is nothing to search with")
    digests = {}
    for word in runs:
        method, digest = named_digest(word, "")
        digests[find_run(project.store, method, digest).method] = digest
    if corpus is not None:
        if len(splits) > 1:
            raise UserError(f"{' and '.join(splits)} of {corpus} are two galleries; name one with --split")
        methods, searches = read_applied(project, corpus, splits[0] if splits else "", digests)
    else:
        for split in splits:
            project.contents.corpus.require_queries(split)
        methods, searches = read_searchable(project, splits, digests)
    if not searches:
        raise UserError(f"nothing can be searched: {methods[0].missing}")
    for (name, _), searched in searches.items():
        if SEPARATOR not in name:  # the index of a further run is made when it is first searched
            searched.make_index(say, on_progress)
    return Prepared(catalogue_of(project.experiment.name, methods, searches), searches)


def serve(project: Project, prepared: Prepared, address: Address, ready: Callable[[str], None]) -> None:
    """Answer until SIGINT or SIGTERM; `ready` hears the address as soon as the socket listens."""

    def make(method: str, split: str, say: Say) -> Searcher:
        # an index belongs to the thread that opens it, and is needed no longer than that
        store = Store(project.store.root)
        try:
            return Searcher(prepared.searches[method, split].in_store(store), say=say).__enter__()
        except UserError as error:  # is answered to a client, who need not know where things are
            raise UserError(without_places(str(error), project.experiment.path.parent)) from None
        finally:
            store.index.close()

    with address.listen() as listening:
        port = listening.getsockname()[1]
        gallery, searchers = _pictures(prepared.searches), Searchers(make)
        tables, report = _tables(project, prepared), ReportSite(project.store, project.experiment.name)
        first_split = prepared.catalogue.splits[0].name
        more = [
            *QuerySite(tables, first_split).routes,
            *LookSite(prepared.catalogue, gallery, searchers, tables).routes,
            *report.routes,
        ]
        app = application(
            prepared.catalogue, gallery, searchers, address.hosts(port), more, lambda: report.exists
        )
        searchers.start(prepared.catalogue.named("", ""))  # before anybody asks
        threading.Thread(target=tables.table, args=(first_split,), name="tables", daemon=True).start()
        ready(f"http://{f'[{address.host}]' if ':' in address.host else address.host}:{port}/")
        uvicorn.Server(bounded(app)).run(sockets=[listening])


def _tables(project: Project, prepared: Prepared) -> Tables:
    """The rank tables of the corpus that is searched."""
    shown, folder = _shown(prepared.searches), project.experiment.path.parent
    failures = {each: None for one in shown for each in _failures(one)}
    found = [(each.stage, each.item, without_places(each.reason, folder)) for each in failures]
    usual = {one.name: one.run for one in prepared.catalogue.methods if one.run and SEPARATOR not in one.name}
    lengths = partial(seconds_of, store=shown[0].project.store, states=_picture_states(shown))
    return Tables(project.store, _contents(shown), usual, lengths, reasons_by_id(found), folder)


def _failures(searched: Searched) -> list[FailedUnit]:
    """What failed before the search: extraction stages alone, whose states the store records by item."""
    stages = searched.states
    units = {name: stages[name] for name in stages if stages.stages[name].over != "corpus"}
    return searched.project.failures(units)


def _pictures(searches: Searches) -> Gallery:
    """The items with the pictures of them that most were made of."""
    shown = _shown(searches)
    return Gallery(replace(shown[0].project, contents=_contents(shown)), _picture_states(shown))


def _shown(searches: Searches) -> list[Searched]:
    """For each kind, the search with the most pictures of items: a stale run and today's may have different ones."""

    def pictures(searched: Searched) -> int:
        return sum(len(searched.states[name].places) for name in PICTURES if name in searched.states)

    kinds = dict.fromkeys(searched.kind for searched in searches.values())
    return [max((one for one in searches.values() if one.kind == kind), key=pictures) for kind in kinds]


def _picture_states(shown: Sequence[Searched]) -> dict[str, State]:
    """The states of the stages that pictures are taken from, each with the most of them."""
    out = {}
    for name in PICTURES:
        having = [searched.states[name] for searched in shown if name in searched.states]
        if having:
            out[name] = max(having, key=lambda state: len(state.places))
    return out


def _contents(shown: Sequence[Searched]) -> Contents:
    """The items of all kinds that are searched: each search knows those of its own kind alone."""
    every = list({id(one.project.contents): one.project.contents for one in shown}.values())
    if len(every) == 1:
        return every[0]
    items = tuple(item for part in every for item in part.corpus.items)
    digests, unreadable = (
        {name: value for part in every for name, value in getattr(part, known).items()}
        for known in ("digests", "unreadable")
    )
    return Contents(Corpus(every[0].corpus.path, items), digests, unreadable)


def bounded(app: ASGIApp) -> uvicorn.Config:
    """How uvicorn runs an application of ours: silent, HTTP/1.1 alone, with every size and number bounded."""
    return uvicorn.Config(
        app, http=PromptProtocol, ws="none", lifespan="on", log_level="warning", access_log=False,
        proxy_headers=False, server_header=False, limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES, timeout_graceful_shutdown=STOP_SECONDS,
    )  # fmt: skip
