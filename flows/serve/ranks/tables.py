"""The tables of a server's splits: read when first needed, and again when the store has other runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.results.wording import without_places
from flows.serve.ranks.evaluated_runs import evaluated_runs
from flows.serve.ranks.table import (
    Column,
    RankTable,
    Rows,
    failures_of,
    folder_signature,
    read_column,
    read_rows,
    row_numbers,
)
from pipeline.corpus.contents import Contents
from pipeline.errors import UserError
from pipeline.store.store import Store

Lengths = Callable[[Collection[str]], NDArray[np.float32]]
"""Function from digests of items to their lengths in seconds, NaN where a length is not known."""


class Tables:
    """The rank tables of an experiment by split. Calls may come from any thread.

    usual: the fingerprint of the training that answers for each method. lengths: gives the seconds of items. reasons:
    why an item or a caption failed, by its id. Evaluations never change, so that a column is read once; a run that is
    finished while the server runs is there at the next call, and one that is removed is left out.
    """

    def __init__(
        self, store: Store, contents: Contents, usual: Mapping[str, str], lengths: Lengths,
        reasons: Mapping[str, str], folder: Path,
    ) -> None:  # fmt: skip
        self._store, self._contents, self._usual = store, contents, usual
        self._lengths, self._reasons, self._folder = lengths, reasons, folder
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[Rows, NDArray[np.float32]]] = {}
        self._columns: dict[tuple[str, str, tuple[Path, ...]], Column | None] = {}
        self._tables: dict[str, tuple[object, RankTable]] = {}

    @property
    def splits(self) -> list[str]:
        """The splits of the corpus, the usual ones first."""
        return self._contents.corpus.splits

    def table(self, split: str) -> RankTable:
        """The table of a split as the store has it now. Raises UserError for a split that the corpus does not have."""
        if split not in self.splits:
            raise UserError(f"the corpus has no split {split!r}; it has {', '.join(self.splits)}")
        signature = folder_signature(self._store.root)
        with self._lock:
            known = self._tables.get(split)
            if known is None or known[0] != signature:
                known = signature, self._read(split)
                self._tables[split] = known
            return known[1]

    def _read(self, split: str) -> RankTable:
        if split not in self._rows:
            rows = read_rows(self._contents, split)
            self._rows[split] = rows, self._lengths([key.decode() for key in rows.keys.tolist()])
        rows, seconds = self._rows[split]
        number, columns, notes = None, [], []
        for run in evaluated_runs(self._store, split, self._usual):
            place = split, run.name, run.folders
            if place not in self._columns:
                number = row_numbers(self._contents, split) if number is None else number
                try:
                    self._columns[place] = read_column(run, rows, number)
                except UserError as error:
                    notes.append(f"{run.name} is left out: {without_places(str(error), self._folder)}")
                    continue
            column = self._columns[place]
            if column is not None:
                columns.append(column)
                if column.unknown:
                    notes.append(f"{column.unknown} queries of {run.name} are not in the corpus any more")
        kept = tuple(columns)
        return RankTable(rows, kept, seconds, failures_of(rows, kept, self._reasons), tuple(notes))
