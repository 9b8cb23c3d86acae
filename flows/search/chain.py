"""The chain of extractors that queries go through: the stages of the experiment, run on a few units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from extractors import shard
from pipeline.errors import ItemError
from pipeline.store.segments import Segment
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

    def run(self, units: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, dict[str, Row]]:
        """Run all stages on units, with a small store in `folder`; returns the row of each output by stage and key.

        Raises ItemError for the first unit that a stage cannot process.
        """
        store = Store(folder)
        rows: dict[str, dict[str, Row]] = {unit["key"]: {} for unit in units}
        files: dict[str, dict[str, str]] = {unit["key"]: {} for unit in units}
        try:
            for stage in self.stages:
                name, fp = stage["name"], stage["fingerprint"]
                ready = [{**unit, "rows": rows[unit["key"]], "files": files[unit["key"]]} for unit in units]
                segment = self._process(stage, ready, folder)
                path = store.segment_path(name, fp, segment)
                for place, key in enumerate(Segment(path).items):  # in the order in which they were finished
                    rows[key][name] = (str(path), place)
                    if stage["suffix"]:
                        files[key][name] = str(store.item_file(name, fp, key, stage["suffix"]))
        finally:
            store.index.close()
        return {
            stage["name"]: {key: own[stage["name"]] for key, own in rows.items()} for stage in self.stages
        }

    def _process(self, stage: Mapping[str, Any], units: Sequence[Mapping[str, Any]], folder: Path) -> str:
        """Run a stage on units; returns the id of the new segment."""
        request = {
            "store": str(folder), "units": units, "options": self.options,
            "stages": [{**stage, "keys": [unit["key"] for unit in units]}],
        }  # fmt: skip
        failed: list[ItemError] = []
        segments: dict[str, Any] = {}

        def heard(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
            if "failed" in header:
                failed.append(ItemError(header["name"], header["reason"]))
            segments.update(header.get("segments", {}))

        shard.run(request, heard)
        if failed:
            raise failed[0]
        return str(segments[stage["name"]]["segment"])
