"""One shard in a worker process: build the extractor once, work through the units, write one segment."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from extractors.base import Extractor, Output, Unit, WorkOptions
from pipeline.child import Send, resolve
from pipeline.errors import ItemError, UserError, is_full
from pipeline.fingerprint import digest_file
from pipeline.segments import SegmentWriter


def run(request: dict[str, Any], send: Send) -> None:
    """Entry of a worker: a shard's units to one segment, with a reply an item, the last for the segment.

    Replies are `{"done": key}`, `{"failed": key, "name", "reason"}`, `{}` as a sign of life, and at
    the end `{"segment": id or None, "bytes", "items": {key: file bytes or None}, "decodes"}`.
    """
    extractor = _loaded(request["entry"], request["params"], request["options"])
    store, fp, stage = Path(request["store"]), request["fingerprint"], extractor.name
    units = [_unit(raw) for raw in request["units"]]
    decodes = 0
    writer = SegmentWriter(
        store / "segments" / stage / fp, store / "work", stage, fp, request["components"], extractor.fields
    )
    try:
        with writer:
            for result in extractor.results(units, writer.spool):
                if result is None:
                    send({}, {})
                    continue
                unit, output = result
                try:
                    if isinstance(output, ItemError):
                        raise output
                    decodes += "decoder" in output.note
                    _keep(writer, unit, output, store / "files" / stage / fp)
                    send({"done": unit.key}, {})
                except ItemError as error:
                    send({"failed": unit.key, "name": unit.name, "reason": error.reason}, {})
            items, path = dict(writer.items), writer.finish()
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"the disk of the store {store} is full; what was finished is kept: free some space, then run again"
        ) from None
    size = path.stat().st_size if path else 0
    send({"segment": path and path.stem, "bytes": size, "items": items, "decodes": decodes}, {})


@functools.lru_cache(maxsize=1)  # a worker serves one stage at a time
def _loaded(entry: str, params: str, options: str) -> Extractor[Any]:
    kind = resolve(entry)
    extractor: Extractor[Any] = kind(kind.settings.model_validate_json(params))
    extractor.load(WorkOptions.model_validate_json(options))
    return extractor


def _unit(raw: dict[str, Any]) -> Unit:
    return Unit(
        key=raw["key"],
        name=raw["name"],
        media=Path(raw["media"]) if raw.get("media") else None,
        text=raw.get("text"),
        files={stage: Path(path) for stage, path in raw.get("files", {}).items()},
        rows={stage: (Path(path), row) for stage, (path, row) in raw.get("rows", {}).items()},
    )


def _keep(writer: SegmentWriter, unit: Unit, output: Output, files: Path) -> None:
    """Add a unit's output to the segment, its file first under its final name."""
    if output.file is None:
        writer.append(unit.key, unit.name, output.arrays, output.note)
        return
    suffix = output.file.suffix
    note = dict(output.note) | {"suffix": suffix, "file_digest": digest_file(output.file)}
    size = output.file.stat().st_size
    target = files / unit.key[:2] / f"{unit.key}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with output.file.open("rb") as file:
        os.fsync(file.fileno())
    output.file.replace(target)
    writer.append(unit.key, unit.name, output.arrays, note, size)
