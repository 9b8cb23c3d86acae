"""One shard in a worker process: builds each extractor once, processes the units, writes a segment for each stage."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extractors.base import Extractor, FrameReader, Output, Result, Unit, WorkOptions, without_memory
from extractors.clock import Clock, Part
from extractors.one_pass import Reading, decoders_of, read_together
from pipeline.child import Send, resolve
from pipeline.errors import ItemError, ItemKilled, UserError, is_full, is_starved
from pipeline.store.fingerprint import digest_file
from pipeline.store.segments import SegmentWriter

_WITH_NETWORKS: set[tuple[str, str]] = set()  # entry and params of the extractors that this process has read


def run(request: dict[str, Any], send: Send) -> None:
    """Entry of a worker: a shard's units to one segment a stage, with a reply a unit and one for the segments.

    Replies are `{"loading": stages}` before their networks are read and `{"loading": []}` after, `{"done": key,
    "stage"}`, `{"failed": key, "name", "reason", "stage"}`, with `"killed": "signal" | "crash"` where the unit is not
    known to be at fault, `{}` as a sign of life, and at the end `{"segments": {stage:
    {"segment": id or None, "bytes", "items": {key: file bytes or None}}}, "decodes", "seconds": {part: seconds},
    "decoders", "unshared"}`: all at once, so that a worker's death leaves all of its shard or nothing. Raises UserError
    where there is no memory or no room on the disk.
    """
    try:
        _run(request, send)
    except (MemoryError, RuntimeError) as error:
        if not is_starved(error):
            raise
        names = " and ".join(resolve(stage["entry"]).name for stage in request["stages"])
        options = WorkOptions.model_validate_json(request["options"])
        raise UserError(without_memory(names, error, options.batch_size, options.device)) from None


def _run(request: dict[str, Any], send: Send) -> None:
    store = Path(request["store"])
    units = [_unit(raw) for raw in request["units"]]
    options = WorkOptions.model_validate_json(request["options"])
    extractors = _all_loaded(request["stages"], options, send)
    decodes, clock, started = Decodes(), Clock(), time.perf_counter()
    for extractor in extractors:
        extractor.clock = clock
    try:
        with contextlib.ExitStack() as stack:
            writers = {}
            for stage, extractor in zip(request["stages"], extractors, strict=True):
                folder = store / "segments" / extractor.name / stage["fingerprint"]
                writers[extractor.name] = stack.enter_context(
                    SegmentWriter(
                        folder, store / "work", extractor.name, stage["fingerprint"], stage["components"],
                        extractor.fields,
                    )
                )  # fmt: skip
            keys = [set(stage["keys"]) for stage in request["stages"]]
            spool = next(iter(writers.values())).spool
            for extractor, result in _results(extractors, keys, units, options, spool, decodes, clock):
                if result is None:
                    send({}, {})
                    continue
                writer = writers[extractor.name]
                unit, output = result
                try:
                    if isinstance(output, ItemError):
                        raise output
                    with clock.part("write"):
                        _keep(writer, unit, output, store / "files" / extractor.name / writer.fingerprint)
                    send({"done": unit.key, "stage": extractor.name}, {})
                except ItemError as error:
                    failed = {"failed": unit.key, "name": unit.name, "reason": error.reason}
                    if isinstance(error, ItemKilled):
                        failed["killed"] = "crash" if error.crash else "signal"
                    send(failed | {"stage": extractor.name}, {})
            with clock.part("write"):
                segments = {name: _finished(writer) for name, writer in writers.items()}
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"the disk of the store {store} is full; what was finished is kept: free some space, then run again"
        ) from None
    clock.add("all", time.perf_counter() - started)
    first = extractors[0]
    ahead = decoders_of(options, first.first_decoder) if isinstance(first, FrameReader) else None
    more = {"decoders": ahead.count, "unshared": ahead.unshared} if ahead else {}
    send({"segments": segments, "decodes": decodes.count, "seconds": clock.seconds, **more}, {})


@dataclass
class Decodes:
    """Number of times that a media file was decoded."""

    count: int = 0

    def add(self) -> None:
        """Count one more decode."""
        self.count += 1


def _results(
    extractors: list[Extractor[Any]], keys: list[set[str]], units: list[Unit], options: WorkOptions, work: Path,
    decodes: Decodes, clock: Clock,
) -> Iterator[tuple[Extractor[Any], Result | None]]:  # fmt: skip
    """The results of each extractor; those that read frames share one pass, any other runs by itself."""
    readers = [e for e in extractors if isinstance(e, FrameReader)]
    if readers:
        readings = [Reading(reader, own) for reader, own in zip(readers, keys, strict=True)]
        yield from read_together(readings, units, options, decodes.add, clock)
        return
    for extractor, own in zip(extractors, keys, strict=True):
        part: Part = "network" if extractor.worker_kind == "model" else "preprocess"
        with clock.part(part):
            for result in extractor.results([unit for unit in units if unit.key in own], work):
                if result is not None and isinstance(result[1], Output) and "decoder" in result[1].note:
                    decodes.add()
                yield extractor, result


def _finished(writer: SegmentWriter) -> dict[str, Any]:
    """Record of a segment for the coordinator; its id is None if no unit succeeded."""
    items, path = dict(writer.items), writer.finish()
    size = path.stat().st_size if path else 0
    return {"segment": path and path.stem, "bytes": size, "items": items}


def _all_loaded(stages: list[dict[str, Any]], options: WorkOptions, send: Send) -> list[Extractor[Any]]:
    """The extractors of a request, with a reply before and after networks are read, which can take a minute."""
    new = [s for s in stages if (s["entry"], s["params"]) not in _WITH_NETWORKS]
    loading = [kind.name for s in new if (kind := resolve(s["entry"])).worker_kind == "model"]
    if loading:
        send({"loading": loading}, {})
    extractors = [_loaded(s["entry"], s["params"], options) for s in stages]
    _WITH_NETWORKS.update((s["entry"], s["params"]) for s in new)
    if loading:
        send({"loading": []}, {})
    return extractors


def _loaded(entry: str, params: str, options: WorkOptions) -> Extractor[Any]:
    """The extractor with its networks read; another batch size alone, as after a worker's death, reads none again."""
    extractor = _read(entry, params, options.model_copy(update={"batch_size": 0}).model_dump_json())
    extractor.options = options
    return extractor


@functools.lru_cache(maxsize=8)  # more than ever share a pass
def _read(entry: str, params: str, options: str) -> Extractor[Any]:
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
        window=tuple(raw["window"]) if raw.get("window") else None,
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
