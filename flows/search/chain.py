"""The chain of extractors that a query goes through: the stages of the experiment, run on one unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from extractors import shard
from pipeline.errors import ItemError
from pipeline.store.store import FeatureReader, Store
from trainers.measure.search import Read

Row = tuple[str, int]
"""A segment's file, and a row of it."""


@dataclass
class Features:
    """The segment and row of each stage's output for some items and captions, by stage and key."""

    first: Mapping[str, str]  # the first output of each stage
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)

    def add(self, rows: Mapping[str, Mapping[str, Row]]) -> Features:
        """The union of these rows and others."""
        names = {*self.rows, *rows}
        return Features(
            self.first, {name: {**self.rows.get(name, {}), **rows.get(name, {})} for name in names}
        )

    def reader(self) -> Read:
        """A function that reads an output of a stage by key; each segment is opened once."""
        readers = {
            stage: FeatureReader({key: (Path(path), row) for key, (path, row) in where.items()})
            for stage, where in self.rows.items()
        }

        def read(stage: str, output: str, key: str) -> NDArray[Any]:
            return readers[stage].rows(key, output or self.first[stage], check=True)

        return read


class Chain:
    """Stages in order, run as a worker of a run would run them; their networks are loaded once and kept.

    stages: for each stage its `name`, `entry`, `params`, `fingerprint`, `components` and the `suffix` of its files.
    """

    def __init__(self, stages: list[dict[str, Any]], options: str) -> None:
        self.stages, self.options = stages, options

    def run(self, unit: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Row]]:
        """Run all stages on a unit, with a small store in `folder`; returns the row of each output by stage and key.

        Raises ItemError if a stage cannot process it.
        """
        store = Store(folder)
        rows: dict[str, Row] = {}
        files: dict[str, str] = {}
        try:
            for stage in self.stages:
                name, fp, key = stage["name"], stage["fingerprint"], unit["key"]
                segment = self._process(stage, {**unit, "rows": rows, "files": files}, folder)
                rows[name] = (str(store.segment_path(name, fp, segment)), 0)
                if stage["suffix"]:
                    files[name] = str(store.item_file(name, fp, key, stage["suffix"]))
        finally:
            store.index.close()
        return {stage: {unit["key"]: row} for stage, row in rows.items()}

    def _process(self, stage: Mapping[str, Any], unit: Mapping[str, Any], folder: Path) -> str:
        """Run a stage on a unit; returns the id of the new segment."""
        request = {
            "store": str(folder), "units": [unit], "options": self.options,
            "stages": [{**stage, "keys": [unit["key"]]}],
        }  # fmt: skip
        reply: dict[str, Any] = {}
        shard.run(request, lambda header, arrays: reply.update(header))
        if "failed" in reply:
            raise ItemError(unit["name"], reply["reason"])
        return str(reply["segments"][stage["name"]]["segment"])
