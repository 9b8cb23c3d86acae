"""Brings one stage up to date: cuts what is missing into shards, has workers do them, records the outcome."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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

RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
# Large arrays go back to the system when they are freed: glibc's own rule let a worker grow by 600 MB over an
# hour of video, in holes between small ones.
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
    decodes: int = 0  # of media files; of a pass that stages share, counted with the first of them
    shared_with: str = ""  # the stage in whose pass over the items this one was made
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
        self._made_along: dict[str, Report] = {}  # in another stage's pass, not yet asked for

    def survey(self) -> dict[str, plan.State]:
        """The state of every stage."""
        return plan.survey(self.stages, self.contents, self.store, self.known)

    def bring_up_to_date(
        self, name: str, redo: bool = False, retry_failed: bool = False, along: Collection[str] = ()
    ) -> Report:
        """Make whatever a stage lacks; nothing where nothing is missing.

        `redo` makes its units again, `retry_failed` those that failed. Stages of `along` that can share
        its pass over the items are made in it, under the same orders. Raises what the stage's own code
        raises; a broken item is recorded and counted.
        """
        started = time.monotonic()
        if name in self._made_along:
            return self._told(self._made_along.pop(name))
        state = self._states[name] if self._states else None
        if state is None:
            self._states = self.survey()  # kept until something is made: an unchanged corpus is surveyed once
            state = self._states[name]
        report = None
        if state.complete and not redo and not (retry_failed and state.failed):
            report = self._counted(state)
        while report is None:
            self._states = {}
            states = self.survey()
            group = [name, *(other for other in plan.companions(self.stages, name) if other in along)]
            prints = {member: states[member].fingerprint.hex for member in group}
            with contextlib.ExitStack() as locks:
                for member in sorted(
                    group
                ):  # always in one order, so that two runs never wait for each other
                    locks.enter_context(self.store.lock(member, prints[member], self.say))
                report = self._under_locks(prints, redo, retry_failed)
        report.seconds = time.monotonic() - started
        return self._told(report)

    def _told(self, report: Report) -> Report:
        self.reports.append(report.as_json())
        return report

    def _under_locks(self, prints: Mapping[str, str], redo: bool, retry_failed: bool) -> Report | None:
        """What was done for the first of these stages, the others in its pass.

        None where another run changed, before the locks were had, what a stage depends on.
        """
        for name, fp in prints.items():
            if self.stages[name].over != "corpus":
                self.store.adopt(name, fp)
        states = self.survey()
        if any(states[name].fingerprint.hex != fp for name, fp in prints.items()):
            return None
        for name, fp in prints.items():
            if not self.stages[name].runner:
                continue  # imported features: nobody here can make them again
            if redo:
                self._forget(states[name])
            elif retry_failed and states[name].failed:
                self.store.index.forget_items(fp, states[name].failed)
        states = self.survey()
        first = next(iter(prints))
        group = [states[name] for name in prints if name == first or states[name].missing]
        reports = [self._counted(state) for state in group]
        if group[0].missing:
            for state in group:
                state.stage.require()
                self.store.index.add_fingerprint(
                    state.fingerprint.hex, state.stage.name, state.fingerprint.components
                )
            if group[0].stage.over == "corpus":
                self._whole(group[0], states, reports[0])
            else:
                self._mapped(group, states, reports)
            for state, report in zip(group, reports, strict=True):
                self._add_failures(report, state)
            for report in reports[1:]:
                report.shared_with = first
                self._made_along[report.stage] = report
        return reports[0]

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

    def _mapped(
        self, group: Sequence[plan.State], states: Mapping[str, plan.State], reports: Sequence[Report]
    ) -> None:
        """One pass over the items, or captions, that any stage of a group lacks."""
        leader = group[0].stage
        if not leader.runner:
            raise UserError(
                f"the imported features {leader.name} lack {len(group[0].missing)} of the {len(group[0].keys)} "
                f"{leader.over} of {self.contents.corpus.path}; import them again for this corpus, or use the "
                "manifest that the import wrote"
            )
        model = next((state.stage for state in group if state.stage.worker_kind == "model"), leader)
        workers, device = placement(model, self.options)
        threads_each = max(1, cores() // workers)
        wanted = {state.stage.name: set(state.missing) for state in group}
        units = {key: unit for state in group for key, unit in self._units(state, states).items()}
        options = {
            "device": device, "batch_size": self.options.batch_size, "item_seconds": self.options.item_seconds,
            "decoder_bytes": self.options.decoder_bytes, "threads": threads_each,
        }  # fmt: skip
        if len(group) > 1:
            names = ", ".join(state.stage.name for state in group)
            self.say(f"one pass over {len(units)} {leader.over} for {names}")

        def request(shard: list[str], number: int) -> dict[str, Any]:
            return {
                "store": str(self.store.root), "units": [units[key] for key in shard],
                "options": json.dumps(options | {"device": device.replace("{n}", str(number))}),
                "stages": [
                    {
                        "entry": state.stage.entry, "params": state.stage.params.model_dump_json(),
                        "fingerprint": state.fingerprint.hex, "components": dict(state.fingerprint.components),
                        "keys": [key for key in shard if key in wanted[state.stage.name]],
                    }
                    for state in group
                ],
            }  # fmt: skip

        shards = cut(group[0].keys, leader.shard_items, set(units))
        work = run_shards(
            leader.runner, shards, request, workers, self.options.stall_seconds,
            threads(threads_each) | RETURN_MEMORY,
        )  # fmt: skip
        tally = _Tally(leader.name, sum(len(keys) for keys in wanted.values()), self.on_progress)
        with contextlib.closing(work):  # type: ignore[type-var]  # a generator: closing kills the workers
            for event in work:
                if isinstance(event, Killed):
                    for state in group:
                        if event.key in wanted[state.stage.name]:
                            name = units[event.key]["name"]
                            self.store.index.add_failure(state.fingerprint.hex, event.key, name, event.reason)
                            tally.add()
                    continue
                header = event.header
                if "segments" in header:
                    for state, report in zip(group, reports, strict=True):
                        self._record(state.fingerprint.hex, header["segments"][state.stage.name], report)
                    reports[0].decodes += header["decodes"]
                elif "failed" in header:
                    fp = states[header["stage"]].fingerprint.hex
                    self.store.index.add_failure(fp, header["failed"], header["name"], header["reason"])
                    tally.add()
                elif "done" in header:
                    tally.add()

    def _record(self, fp: str, made: Mapping[str, Any], report: Report) -> None:
        if made["segment"]:
            self.store.index.add_segment(made["segment"], fp, made["bytes"], made["items"])
            report.ran += len(made["items"])

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


class _Tally:
    """Counts the units of a pass and tells of it."""

    def __init__(self, stage: str, total: int, on_progress: OnProgress) -> None:
        self.stage, self.total, self.on_progress, self.done = stage, total, on_progress, -1
        self.add()

    def add(self) -> None:
        """One more unit was done, or failed. A shard that is tried again counts no further than all."""
        self.done = min(self.done + 1, self.total)
        self.on_progress(Progress(self.stage, self.done, self.total))


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
