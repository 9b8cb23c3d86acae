"""Brings one stage up to date: cuts what is missing into shards, has workers do them, records the outcome."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field as Setting

from pipeline import plan
from pipeline.briefing import Briefing
from pipeline.child import Child, ChildDied, is_interrupt
from pipeline.contents import Contents
from pipeline.errors import UserError
from pipeline.pool import Killed, run_shards
from pipeline.settings import Options
from pipeline.shards import cut
from pipeline.stage import Digests, Stage
from pipeline.store import Store, write_json

STOP_SECONDS = 60.0  # a training stage writes its checkpoint before it ends


class RunOptions(Options):
    """Where and how wide to run. Never part of a fingerprint."""

    workers: int = Setting(0, ge=0)  # worker processes; 0: one a core, or one a GPU for networks
    device: str = Setting("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")  # auto: GPUs where there are any
    batch_size: int = Setting(64, ge=1)  # of frozen networks
    item_seconds: float = Setting(300.0, gt=0)  # without progress on one item
    stall_seconds: float = Setting(1800.0, gt=0)  # without any sign of life of a worker
    decoder_bytes: int = Setting(4 << 30, ge=1 << 30)  # address space of a decoding process


@dataclass(frozen=True)
class Progress:
    """How far a stage is: units done of those to do, or what a training reports of itself."""

    stage: str
    done: int
    total: int
    failed: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """What bringing a stage up to date took and gave."""

    stage: str
    fingerprint: str
    total: int
    cached: int = 0
    ran: int = 0
    failed: int = 0  # now and earlier
    blocked: int = 0
    decodes: int = 0
    seconds: float = 0.0
    failures: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


OnProgress = Callable[[Progress], None]
Say = Callable[[str], None]


class Runner:
    """Runs stages of one experiment on one store; re-surveys before each, so that it sees what others made."""

    def __init__(
        self, stages: plan.Stages, contents: Contents, store: Store, known: Digests, options: RunOptions,
        on_progress: OnProgress = lambda progress: None, say: Say = lambda sentence: None,
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.stages, self.contents, self.options = stages, contents, options
        self.store, self.known = store, known
        self.on_progress, self.say, self.about = on_progress, say, about or {}
        self.reports: list[dict[str, Any]] = []
        self._states: dict[str, plan.State] = {}

    def survey(self) -> dict[str, plan.State]:
        """The state of every stage."""
        return plan.survey(self.stages, self.contents, self.store, self.known)

    def bring_up_to_date(self, name: str, redo: bool = False, retry_failed: bool = False) -> Report:
        """Make whatever a stage lacks; nothing where nothing is missing.

        `redo` makes its units again, `retry_failed` those that failed. Raises what the stage's own
        code raises; a broken item is recorded and counted.
        """
        started = time.monotonic()
        state = self._states[name] if self._states else None
        if state is None:
            self._states = self.survey()  # kept until something is made: an unchanged corpus is surveyed once
            state = self._states[name]
        report = None
        if state.complete and not redo and not (retry_failed and state.failed):
            report = self._counted(state)
        while report is None:
            self._states = {}
            fp = self.survey()[name].fingerprint.hex
            with self.store.lock(name, fp, self.say):
                report = self._under_lock(name, fp, redo, retry_failed)
        report.seconds = time.monotonic() - started
        self.reports.append(report.as_json())
        return report

    def _under_lock(self, name: str, fp: str, redo: bool, retry_failed: bool) -> Report | None:
        """What was done; None where another run changed, before the lock was had, what the stage depends on."""
        if self.stages[name].over != "corpus":
            self.store.adopt(name, fp)
        states = self.survey()
        state = states[name]
        if state.fingerprint.hex != fp:
            return None
        if redo or (retry_failed and state.failed):
            self._forget(state) if redo else self.store.index.forget_items(fp, state.failed)
            states = self.survey()
            state = states[name]
        report = self._counted(state)
        if state.missing:
            state.stage.require()
            self.store.index.add_fingerprint(fp, name, state.fingerprint.components)
            make = self._whole if state.stage.over == "corpus" else self._mapped
            make(state, states, report)
            self._add_failures(report, state)
        return report

    def _counted(self, state: plan.State) -> Report:
        """A stage as it is: what is cached, failed and blocked."""
        report = Report(
            state.stage.name,
            state.fingerprint.hex,
            len(state.keys),
            cached=state.done,
            blocked=len(state.blocked),
        )
        self._add_failures(report, state)
        return report

    def _forget(self, state: plan.State) -> None:
        if state.stage.over == "corpus":
            for folder in (self.store.run_folder, self.store.work_folder):
                shutil.rmtree(folder(state.stage.name, state.fingerprint.hex), ignore_errors=True)
        else:
            self.store.index.forget_items(state.fingerprint.hex, state.keys)
            self.store.drop_unused_segments(state.stage.name, state.fingerprint.hex)

    def _add_failures(self, report: Report, state: plan.State) -> None:
        if state.stage.over == "corpus":
            return
        wanted = set(state.keys)
        failures = self.store.index.failures(report.fingerprint)
        report.failures = [
            {"name": f.name, "reason": f.reason}
            for key, f in failures.items()
            if key in wanted and key not in state.places
        ]
        report.failed = len(report.failures)

    # stages mapped over items or captions ----------------------------------------------------------

    def _mapped(self, state: plan.State, states: Mapping[str, plan.State], report: Report) -> None:
        stage, fp = state.stage, state.fingerprint
        if not stage.runner:
            raise UserError(
                f"the imported features {stage.name} lack {len(state.missing)} of the {len(state.keys)} {stage.over} "
                f"of {self.contents.corpus.path}; import them again, or use the manifest that the import wrote"
            )
        workers, device = placement(stage, self.options)
        threads_each = max(1, cores() // workers)
        units = self._units(state, states)
        options = {
            "device": device, "batch_size": self.options.batch_size, "item_seconds": self.options.item_seconds,
            "decoder_bytes": self.options.decoder_bytes, "threads": threads_each,
        }  # fmt: skip

        def request(shard: list[str], number: int) -> dict[str, Any]:
            return {
                "entry": stage.entry, "params": stage.params.model_dump_json(), "store": str(self.store.root),
                "fingerprint": fp.hex, "components": dict(fp.components), "units": [units[key] for key in shard],
                "options": json.dumps(options | {"device": device.replace("{n}", str(number))}),
            }  # fmt: skip

        shards = cut(state.keys, stage.shard_items, set(state.missing))
        total, seen = len(state.missing), 0
        self.on_progress(Progress(stage.name, 0, total))
        work = run_shards(
            stage.runner, shards, request, workers, self.options.stall_seconds, threads(threads_each)
        )
        with contextlib.closing(work):  # type: ignore[type-var]  # a generator: closing kills the workers
            for event in work:
                if isinstance(event, Killed):
                    self.store.index.add_failure(fp.hex, event.key, units[event.key]["name"], event.reason)
                    seen += 1
                elif "segment" in event.header:
                    self._record(fp.hex, event.header, report)
                elif "failed" in event.header:
                    h = event.header
                    self.store.index.add_failure(fp.hex, h["failed"], h["name"], h["reason"])
                    seen += 1
                elif "done" in event.header:
                    seen += 1
                self.on_progress(Progress(stage.name, min(seen, total), total))

    def _record(self, fp: str, header: Mapping[str, Any], report: Report) -> None:
        if header["segment"]:
            self.store.index.add_segment(header["segment"], fp, header["bytes"], header["items"])
            report.ran += len(header["items"])
            report.decodes += header["decodes"]

    def _units(self, state: plan.State, states: Mapping[str, plan.State]) -> dict[str, dict[str, Any]]:
        """What a worker is told of each missing unit."""
        if state.stage.over == "captions":
            captions = self.contents.captions()
            return {
                key: {"key": key, "name": captions[key].id, "text": captions[key].text}
                for key in state.missing
            }
        items = self.contents.items()
        out = {}
        for key in state.missing:
            media = self.contents.corpus.media_path(items[key])
            if media is None and not state.stage.needs:
                raise UserError(
                    f"{items[key].id} of {self.contents.corpus.path} has no media to make {state.stage.name} of; "
                    "set trainers.<method>.video_features to the imported stage"
                )
            out[key] = {"key": key, "name": items[key].id, "media": str(media) if media else None}
            out[key] |= self._upstream(key, state.stage, states)
        return out

    def _upstream(self, key: str, stage: Stage[Any], states: Mapping[str, plan.State]) -> dict[str, Any]:
        files, rows = {}, {}
        for need in stage.needs:
            upstream = states[need]
            fp, place = upstream.fingerprint.hex, upstream.places[key]
            if upstream.stage.file_suffix:
                files[need] = str(self.store.item_file(need, fp, key, upstream.stage.file_suffix))
            rows[need] = [str(self.store.segment_path(need, fp, place.segment)), place.row]
        return {"files": files, "rows": rows}

    # stages over the whole corpus ------------------------------------------------------------------

    def _whole(self, state: plan.State, states: Mapping[str, plan.State], report: Report) -> None:
        stage, fp = state.stage, state.fingerprint
        report.ran = 1
        if self.store.publish_finished(stage.name, fp.hex):
            return
        folder = self.store.work_folder(stage.name, fp.hex)
        folder.mkdir(parents=True, exist_ok=True)
        request = {
            "stage": stage.name, "method": stage.method, "params": stage.params.model_dump_json(),
            "folder": str(folder), "fingerprint": fp.hex,
            "device": placement(stage, self.options)[1].replace("{n}", "0"),
            "needs": {n: str(self.store.run_folder(n, states[n].fingerprint.hex)) for n in stage.needs},
        }  # fmt: skip
        brief = stage.brief(Briefing(self.contents, self.store, states, self.reports, self.about))
        inputs = self.store.root / "work" / f"{stage.name}-{fp.hex}.inputs.json"
        if brief:
            write_json(inputs, brief)
            request["inputs"] = str(inputs)
        started = time.monotonic()
        self.on_progress(Progress(stage.name, 0, 1))
        child = Child(stage.runner, env=threads(cores()))
        replies = child.call(request)  # kept: closing it would kill the child before it can be asked to stop
        extra: dict[str, Any] = {}
        try:
            for header, _ in replies:
                if "progress" in header:
                    self.on_progress(Progress(stage.name, 0, 1, detail=header["progress"]))
                extra |= header.get("record", {})
        except ChildDied as death:
            raise ChildDied(f"{stage.name}: its process died: {death}") from None
        except BaseException as error:
            if is_interrupt(error):
                child.terminate(STOP_SECONDS)
            raise
        finally:
            child.kill()
        self.store.publish(stage.name, fp, time.monotonic() - started, extra)
        inputs.unlink(missing_ok=True)
        self.on_progress(Progress(stage.name, 1, 1))


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def threads(count: int) -> dict[str, str]:
    """The environment that gives a worker so many threads.

    Idle threads sleep: spinning ones, OpenMP's default, made a training step up to ten times slower on
    a machine whose cores had other work too, and were no faster on a quiet one.
    """
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE"}


def gpus() -> int:
    """NVIDIA GPUs of this machine that are visible to this process, without asking torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def placement(stage: Stage[Any], options: RunOptions) -> tuple[int, str]:
    """How many workers a stage gets, and the device of each (`{n}` stands for the worker's number)."""
    if stage.worker_kind == "model" and options.device in ("auto", "cuda") and gpus():
        return options.workers or gpus(), "cuda:{n}"
    device = "cpu" if options.device == "auto" else options.device
    return options.workers or cores(), device


def summary(reports: Iterable[Report]) -> dict[str, int]:
    """Totals over the stages of a run."""
    reports = list(reports)
    return {
        "stages": len(reports),
        "stages_ran": sum(report.ran > 0 for report in reports),
        "failed": sum(report.failed for report in reports),
        "decodes": sum(report.decodes for report in reports),
    }
