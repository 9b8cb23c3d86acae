"""Brings one stage up to date: cuts the missing units into shards, has workers process them, records the outcome."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.child import ChildDied
from pipeline.corpus.contents import Contents
from pipeline.errors import UserError
from pipeline.run import plan
from pipeline.run.briefing import RunBriefing
from pipeline.run.engines.choice import engine_for
from pipeline.run.engines.corpus_process import CorpusProcess
from pipeline.run.engines.gpu_slots import gpu_slots
from pipeline.run.engines.local import local_workers
from pipeline.run.engines.machine import cores, gpu_numbers, gpus, threads, visible_gpus
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.work import Engine, Work
from pipeline.run.pool import Killed
from pipeline.run.shards import cut
from pipeline.run.stage import Digests, Stage
from pipeline.run.time_spent import TimeSpent
from pipeline.run.units import Lacking, UnitSpecs
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.index import Kind
from pipeline.store.store import Store, write_json


@dataclass(frozen=True)
class Progress:
    """The progress of a stage: the number of units done and to do, or the report of a training.

    `doing` names work that moves no count, for instance "loading networks".
    """

    stage: str
    done: int
    total: int
    failed: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)
    doing: str = ""


@dataclass
class Report:
    """The costs and results of bringing a stage up to date."""

    stage: str
    fingerprint: str
    total: int
    cached: int = 0
    ran: int = 0
    tried: int = 0  # units that this run worked on: those that it made, and those that failed or were killed
    failed: int = 0  # units that failed in this run or an earlier one
    killed: int = (
        0  # units whose program or worker was killed, also when tried alone; the next run tries them again
    )
    blocked: int = 0
    decodes: int = 0  # decoded media files; for a pass that stages share, all are counted in the first stage
    shared_with: str = ""  # the stage in whose pass over the items this one was made
    seconds: float = 0.0
    parts: dict[str, float] = field(
        default_factory=dict
    )  # seconds of its workers by part of the work, in the first stage of a pass; some parts overlap
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def worked(self) -> bool:
        """Whether this run worked on the stage, even if nothing came of it."""
        return self.ran > 0 or self.tried > 0

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


OnProgress = Callable[[Progress], None]
Say = Callable[[str], None]
LOADING = "loading networks"


class Runner:
    """Runs stages of one experiment on one store.

    `states` is the survey that it reads and keeps up to date with the outputs of this run and, under the lock
    of each stage, with those of other runs.
    """

    def __init__(
        self, stages: plan.Stages, contents: Contents, store: Store, known: Digests, options: RunOptions,
        on_progress: OnProgress = lambda progress: None, say: Say = lambda sentence: None,
        about: Mapping[str, Any] | None = None, states: plan.Survey | None = None,
    ) -> None:  # fmt: skip
        self.stages, self.contents, self.options = stages, contents, options
        self.store = store
        self.on_progress, self.say, self.about = on_progress, say, about or {}
        self.states = plan.Survey(stages, contents, store, known) if states is None else states
        self.reports: list[dict[str, Any]] = []
        self.engine: Engine = engine_for(options, say)
        self._corpus_process = CorpusProcess()
        self._made_along: dict[
            str, Report
        ] = {}  # stages made in the pass of another one, whose reports were not returned yet
        self._said_unshared = False
        self.killed_before = time.time()  # units killed before now are tried again, once

    @property
    def killed_before(self) -> float:
        """Units killed before this time are tried again; 0 if none is."""
        return self.states.killed_before

    @killed_before.setter
    def killed_before(self, seconds: float) -> None:
        self.states.killed_before = seconds

    def close(self) -> None:
        """End the engine and the process that are kept from stage to stage."""
        self._corpus_process.close()
        self.engine.close()

    def bring_up_to_date(
        self, name: str, redo: bool = False, retry_failed: bool = False, along: Collection[str] = ()
    ) -> Report:
        """Make the missing units of a stage, if any; return the report, which is also added to `reports`.

        `redo` makes all its units again, `retry_failed` the failed ones. Stages in `along` that can share its
        pass over the items are made in the same pass, with the same options. An exception of the stage's own
        code is raised; a broken item is recorded and counted.
        """
        report = self._made_along.pop(name, None) or self._make(name, redo, retry_failed, along)
        self.reports.append(report.as_json())
        return report

    def _make(self, name: str, redo: bool, retry_failed: bool, along: Collection[str]) -> Report:
        started = time.monotonic()
        report = None
        if not self._has_work(name, redo, retry_failed):
            self.states.refresh([name])  # complete when it was read; another run may have dropped some since
            if not self._has_work(name, redo, retry_failed):
                report = self._count(self.states[name])
        group = [name]
        if report is None and (pinned := self.stages[name].pinned):
            raise UserError(
                f"{name} {pinned.hex} was asked for as an earlier run made it, and it is not whole in the store"
            )
        if report is None:
            group += [n for n in plan.companions(self.stages, name) if n in along and self._is_possible(n)]
        while report is None:
            self._complete_needs(name)
            prints = {member: self.states[member].fingerprint.hex for member in group}
            with contextlib.ExitStack() as locks:
                for member in sorted(
                    group
                ):  # all runs in one order, so that none waits for another in a circle
                    locks.enter_context(self.store.lock(member, prints[member], self.say))
                report = self._under_locks(prints, redo, retry_failed)
        report.seconds = time.monotonic() - started
        return report

    def _has_work(self, name: str, redo: bool, retry_failed: bool) -> bool:
        state = self.states[name]
        return redo or not state.complete or (retry_failed and bool(state.failed))

    def _is_possible(self, name: str) -> bool:
        """Whether a stage's requirements (weights) are met; if not, the error is raised at the stage's own turn."""
        try:
            if not self.states[name].complete:
                self.stages[name].require()
        except UserError:
            return False
        return True

    def _complete_needs(self, name: str) -> None:
        """Make the missing units of the stages that a stage needs.

        In a run in order, units are missing only if another run has dropped them since. If that run is making
        them again, this one waits for its lock.
        """
        self.states.demand(self.stages[name].needs)
        for need in self.stages[name].needs:
            if not self.states[need].complete:
                self._make(need, False, False, ())
                if not self.states[need].complete:
                    raise RuntimeError(
                        f"{need} still lacks {len(self.states[need].missing)} units after it was made"
                    )

    def _under_locks(self, prints: Mapping[str, str], redo: bool, retry_failed: bool) -> Report | None:
        """Make these stages in one pass, under their locks; return the report of the first one.

        Returns None if another run changed the inputs of a stage before the locks were held.
        """
        for name, fp in prints.items():
            if self.stages[name].over != "corpus" and self.store.adopt(name, fp):
                self.states.forget([name])
        self.states.refresh(prints)
        first = next(iter(prints))
        if any(self.states[name].fingerprint.hex != fp for name, fp in prints.items()) or not all(
            self.states[need].complete for need in self.stages[first].needs
        ):
            return None
        for name, fp in prints.items():
            if not self.stages[name].runner:
                continue  # imported features: nobody here can make them again
            if redo:
                self._forget(self.states[name])
            elif retry_failed and self.states[name].failed:
                self.store.index.forget_items(fp, self.states[name].failed)
                self.states.forget([name])
        group = [self.states[name] for name in prints if name == first or self.states[name].missing]
        reports = [self._count(state) for state in group]
        if group[0].missing:
            for state, report in zip(group, reports, strict=True):
                report.tried = len(state.missing)
            try:
                self._work_on(group, reports)
            finally:  # also after an interrupt: the finished units are in the index
                self.states.forget([state.stage.name for state in group])
            for report in reports:
                self._add_failures(report)
            for report in reports[1:]:
                report.shared_with = first
                self._made_along[report.stage] = report
        return reports[0]

    def _work_on(self, group: Sequence[plan.State], reports: Sequence[Report]) -> None:
        """Make the missing units of the stages of a group, and count them in their reports."""
        for state in group:
            state.stage.require()
            self.store.index.add_fingerprint(
                state.fingerprint.hex, state.stage.name, state.fingerprint.components
            )
        if group[0].stage.over == "corpus":
            self._whole(group[0], reports[0])
        else:
            self._mapped(group, reports)

    def _count(self, state: plan.State) -> Report:
        """Return the report of a stage before any work: the numbers of cached, failed and blocked units."""
        report = Report(
            state.stage.name,
            state.fingerprint.hex,
            len(state.keys),
            cached=state.done,
            blocked=len(state.blocked),
        )
        self._add_failures(report)
        return report

    def _forget(self, state: plan.State) -> None:
        """Drop all outputs of a stage, so that all its units are missing."""
        if state.stage.over == "corpus":
            for folder in (self.store.run_folder, self.store.work_folder):
                shutil.rmtree(folder(state.stage.name, state.fingerprint.hex), ignore_errors=True)
            if kept := state.stage.keeps(
                state.fingerprint
            ):  # its segments stay: other artifacts refer to them
                contents = self.contents.of_kind(state.stage.kind)
                keys = {key for split in state.stage.splits() for key in plan.split_keys(contents, split)}
                self.store.index.forget_items(kept[1].hex, keys)
        else:
            self.store.index.forget_items(state.fingerprint.hex, state.keys)
            self.store.drop_unused_segments(state.stage.name, state.fingerprint.hex)
        self.states.forget([state.stage.name])

    def _add_failures(self, report: Report) -> None:
        failures = self.states[report.stage].failed.values()
        report.failures = [
            {"name": failure.name, "reason": failure.reason, "kind": failure.kind} for failure in failures
        ]
        report.killed = sum(failure.kind == "killed" for failure in failures)
        report.failed = len(report.failures) - report.killed

    # stages mapped over items or captions ----------------------------------------------------------

    def _mapped(self, group: Sequence[plan.State], reports: Sequence[Report]) -> None:
        """Make one pass over the items, or captions, that are missing in any stage of a group."""
        leader = group[0].stage
        if not leader.runner:
            raise UserError(import_lack(group[0], self.contents))
        model = next((state.stage for state in group if state.stage.worker_kind == "model"), leader)
        missing = {state.stage.name: frozenset(state.missing) for state in group}
        keys = frozenset(key for state in group for key in state.missing)
        units = UnitSpecs(keys, leader, self.contents, self.store, self.states)
        if len(group) > 1:
            names = ", ".join(state.stage.name for state in group)
            self.say(f"one pass over {len(units)} {leader.over} for {names}")

        alone = [key for key in dict.fromkeys(key for state in group for key in state.killed) if key in keys]
        work = Work(
            entry=leader.runner,
            shards=cut(group[0].keys, leader.shard_items, keys.difference(alone) if alone else keys),
            alone=alone,
            store=str(self.store.root),
            units=units,
            stages=[_worker_spec(state) for state in group],
            lacking=Lacking(keys, [missing[state.stage.name] for state in group]),
            options=self.options.model_dump(
                include={"batch_size", "item_seconds", "decoder_bytes", "decoders"}
            ),
            network=model.worker_kind == "model",
        )
        self._corpus_process.close()  # the workers need its memory
        tally, spent = _Tally(leader.name, missing, self.on_progress), TimeSpent()
        with contextlib.closing(self.engine.run(work)) as events:  # closing kills the workers
            for event in events:
                if isinstance(event, Killed):
                    for state in group:
                        if event.key in missing[state.stage.name]:
                            name = units.name(event.key)
                            kind: Kind = "failed" if event.own_doing else "killed"
                            self.store.index.add_failure(
                                state.fingerprint.hex, event.key, name, event.reason, kind
                            )
                            tally.add(event.key, state.stage.name)
                    continue
                header = event.header
                if "segments" in header:
                    for state, report in zip(group, reports, strict=True):
                        self._record(state.fingerprint.hex, header["segments"][state.stage.name], report)
                    reports[0].decodes += header["decodes"]
                    spent.add(header)
                    self._say_unshared(header.get("unshared", ""))
                elif "failed" in header:
                    fp = self.states[header["stage"]].fingerprint.hex
                    kind = "killed" if header.get("killed") == "signal" else "failed"
                    self.store.index.add_failure(fp, header["failed"], header["name"], header["reason"], kind)
                    tally.add(header["failed"], header["stage"])
                elif "done" in header:
                    tally.add(header["done"], header["stage"])
                elif "loading" in header:
                    tally.say_doing(LOADING if header["loading"] else "")
        reports[0].parts = spent.as_json()
        if line := spent.line(" + ".join(state.stage.name for state in group)):
            self.say(line)

    def _say_unshared(self, reason: str) -> None:
        """Say once in a run that decoded frames come through a socket."""
        if reason and not self._said_unshared:
            self._said_unshared = True
            self.say(
                f"no shared memory for decoded frames ({reason}): they go through a socket, which costs about a "
                "fifth more a frame; run.decoders or run.workers lower need less memory"
            )

    def _record(self, fp: str, made: Mapping[str, Any], report: Report) -> None:
        if made["segment"]:
            self.store.index.add_segment(made["segment"], fp, made["bytes"], made["items"])
            report.ran += len(made["items"])

    # stages over the whole corpus ------------------------------------------------------------------

    def _whole(self, state: plan.State, report: Report) -> None:
        stage, fp = state.stage, state.fingerprint
        report.ran = 1
        if self.store.publish_finished(stage.name, fp.hex):
            return
        with contextlib.ExitStack() as held:
            if kept := stage.keeps(fp):
                held.enter_context(self._keeping(*kept))
            self._make_whole(state)

    @contextlib.contextmanager
    def _keeping(self, name: str, fp: Fingerprint) -> Iterator[None]:
        """Hold the lock of the rows that a stage over the corpus keeps, which several of its artifacts share."""
        with self.store.lock(name, fp.hex, self.say):
            self.store.index.add_fingerprint(fp.hex, name, fp.components)
            self.store.adopt(name, fp.hex)
            yield

    def _make_whole(self, state: plan.State) -> None:
        stage, fp = state.stage, state.fingerprint
        folder = self.store.work_folder(stage.name, fp.hex)
        folder.mkdir(parents=True, exist_ok=True)
        request = self._request(state)
        contents = self.contents.of_kind(stage.kind)
        brief = stage.brief(RunBriefing(contents, self.store, self.states, self.reports, self.about))
        inputs = self.store.root / "work" / f"{stage.name}-{fp.hex}.inputs.json"
        if brief:
            write_json(inputs, brief, compact=True)
            request["inputs"] = str(inputs)
        with self._place(stage) as (place, env):
            started = time.monotonic()
            self.on_progress(
                Progress(stage.name, 0, 1, doing=LOADING if stage.worker_kind == "model" else "")
            )
            extra = self._run_in_process(state, request | place, env)
        self.store.publish(stage.name, fp, time.monotonic() - started, extra | self._origin(state))
        inputs.unlink(missing_ok=True)
        self.on_progress(Progress(stage.name, 1, 1))

    def _origin(self, state: plan.State) -> dict[str, Any]:
        """Return the entries of an artifact's record that say which experiment made it, and from what.

        The settings are complete, unlike the components, which have the digest of weights and not their place.
        """
        stages = plan.ancestors(self.stages, [state.stage.name])
        return {
            "experiment": self.about.get("name", ""),
            "corpus": self.contents.corpus.path.name,
            "made_from": {
                name: {
                    "fingerprint": self.states[name].fingerprint.hex,
                    "components": dict(self.states[name].fingerprint.components),
                    "settings": self.stages[name].params.model_dump(mode="json"),
                }
                for name in plan.order(self.stages) if name in stages
            },
        }  # fmt: skip

    def _request(self, state: plan.State) -> dict[str, Any]:
        """Return the request to the process that makes a stage over the corpus."""
        stage, fp = state.stage, state.fingerprint
        return {
            "stage": stage.name, "method": stage.method, "params": stage.params.model_dump_json(),
            "folder": str(self.store.work_folder(stage.name, fp.hex)), "fingerprint": fp.hex,
            "needs": {n: str(self.store.run_folder(n, self.states[n].fingerprint.hex)) for n in stage.needs},
        }  # fmt: skip

    def join(self, name: str) -> None:
        """Take part in a training that a run on another machine leads on the same store, until it ends.

        Raises UserError if the training is finished, cannot be joined, or needs a stage that is not finished.
        """
        self.states.refresh([name])
        state = self.states[name]
        if not state.stage.several or self.options.nodes == 1:
            raise UserError(f"{name} cannot be joined: only a training with run.nodes above 1 can")
        if state.complete:
            raise UserError(f"{name} is done already")
        for need in state.stage.needs:
            if not self.states[need].complete:
                raise UserError(f"{need} is not done yet; the run that leads makes it first")
        with self._place(state.stage) as (place, env):
            self._run_in_process(state, self._request(state) | place, env)

    @contextlib.contextmanager
    def _place(self, stage: Stage[Any]) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
        """Yield the devices of a stage over the corpus and its environment; it runs on this machine with any engine.

        If it can use a GPU, it sees only one that no other run uses; with several processes, one for each.
        """
        options, env = self.options, threads(cores())
        numbers = gpu_numbers(options.device) if stage.worker_kind == "model" else []
        count = (options.processes or len(numbers) or 1) if stage.several else 1
        place: dict[str, Any] = {"device": "cpu"}
        if stage.several:
            place |= {
                "processes": count, "nodes": options.nodes, "rendezvous": options.rendezvous,
                "loader_workers": options.loader_workers,
            }  # fmt: skip
        if not numbers:
            yield place, env
            return
        if count > len(numbers):
            raise UserError(
                f"run.processes = {count} is not possible: {len(numbers)} GPUs are visible here; "
                'device = "cpu" trains without'
            )
        with contextlib.ExitStack() as held:
            if not options.share_gpu:
                numbers = held.enter_context(gpu_slots(numbers, count, count, self.say))
            visible = ",".join(visible_gpus()[number] for number in numbers[:count])
            yield place | {"device": "cuda:0"}, env | {"CUDA_VISIBLE_DEVICES": visible}

    def _run_in_process(
        self, state: plan.State, request: Mapping[str, Any], env: dict[str, str]
    ) -> dict[str, Any]:
        """Make a stage over the corpus in a separate process; return the keys to add to the artifact's record."""
        stage, extra = state.stage, dict[str, Any]()
        kept = stage.keeps(state.fingerprint)

        def hear(header: dict[str, Any]) -> None:
            if "kept" in header and kept is not None:
                made = header["kept"]
                self.store.index.add_segment(made["segment"], kept[1].hex, made["bytes"], made["items"])
            if "doing" in header:
                done, total = header.get("units", (0, 1))
                self.on_progress(Progress(stage.name, done, total, doing=header["doing"]))
            if "progress" in header:
                self.on_progress(Progress(stage.name, 0, 1, detail=header["progress"]))
            if "log" in header:
                self.say(header["log"])
            extra.update(header.get("record", {}))

        keep = request["device"] == "cpu"  # CUDA frees memory only when the process ends
        try:
            self._corpus_process.run(stage.runner, request, env, keep, hear)
        except ChildDied as death:
            raise ChildDied(f"{stage.name}: its process died: {death}") from None
        return extra


def import_lack(state: plan.State, contents: Contents) -> str:
    """Return the sentence about imported features that are missing, which no run can make."""
    return (
        f"the imported features {state.stage.name} lack {len(state.missing)} of the {len(state.keys)} "
        f"{state.stage.over} of {contents.corpus.path}; import them again for this corpus, or use the manifest that "
        "the import wrote"
    )


def _worker_spec(state: plan.State) -> dict[str, Any]:
    """Return the data that a worker needs to rebuild a stage and to label its segments."""
    return {
        "entry": state.stage.entry, "params": state.stage.params.model_dump_json(),
        "fingerprint": state.fingerprint.hex, "components": dict(state.fingerprint.components),
    }  # fmt: skip


class _Tally:
    """Counts the items, or captions, of a pass that every stage has finished, and reports the progress."""

    def __init__(self, leader: str, lacking: Mapping[str, Collection[str]], on_progress: OnProgress) -> None:
        """`lacking` gives for each stage, by name, the keys that it has to finish."""
        self.leader, self.on_progress = leader, on_progress
        self.lacking = {stage: set(keys) for stage, keys in lacking.items()}
        self.total, self.done, self.doing = len(set().union(*self.lacking.values())), 0, ""
        self._report()

    def say_doing(self, doing: str) -> None:
        """Report work that moves no count, or its end by ""."""
        self.doing = doing
        self._report()

    def add(self, key: str, stage: str) -> None:
        """Record that a stage has finished an item, done or failed. A shard that is tried again counts once."""
        self.doing = ""  # one worker is at work, whatever another still loads
        if key in self.lacking.get(stage, ()):
            self.lacking[stage].discard(key)
            if not any(key in keys for keys in self.lacking.values()):
                self.done += 1
                self._report()

    def _report(self) -> None:
        self.on_progress(Progress(self.leader, self.done, self.total, doing=self.doing))


def placement(stage: Stage[Any], options: RunOptions) -> tuple[int, str]:
    """Return the number of workers of a stage on this machine, and their device (`{n}` stands for a GPU's number)."""
    wants_gpu = options.device.startswith("cuda") or (options.device == "auto" and gpus() > 0)
    if stage.worker_kind == "model" and wants_gpu:
        return local_workers(options, gpus()), "cuda:{n}"
    return local_workers(options, 0), "cpu"


def summary(reports: Iterable[Report]) -> dict[str, int]:
    """Return the totals over the stages of a run."""
    reports = list(reports)
    return {
        "stages": len(reports),
        "stages_ran": sum(report.worked for report in reports),
        "failed": sum(report.failed for report in reports),
        "killed": sum(report.killed for report in reports),
        "decodes": sum(report.decodes for report in reports),
    }
