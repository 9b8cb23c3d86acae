"""Time and disk that missing work will take: as in earlier runs on this store, else as such work usually takes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from flows.costs import OPERATIONS_A_SECOND, Facts, UnitCost, unit_cost
from flows.media_sample import Sample
from flows.method_costs import START_SECONDS, corpus_cost
from flows.project import Project
from pipeline.errors import UserError
from pipeline.run.engines.local import local_workers
from pipeline.run.engines.machine import cores, gpu_numbers
from pipeline.run.engines.options import RunOptions
from pipeline.run.plan import State, passes
from pipeline.run.shards import shard_size
from pipeline.run.stage import Stage
from pipeline.store.store import Store, tree_bytes

RUNS_READ = 50
GPU_OPERATIONS_A_SECOND = (
    15e12  # of a GPU in a network, an assumption: ViT-B/32 would encode 1,700 frames a second
)
SEGMENT_BYTES = 9e3  # of a segment without a row
CPU_START_SECONDS = 0.5  # of a worker without a network


@dataclass(frozen=True)
class Expected:
    """Seconds and bytes to expect; None where nothing is known.

    `measured` says that earlier runs on this store took as much; otherwise usual costs and sampled media give it.
    """

    seconds: float | None = None
    bytes: float | None = None
    seconds_measured: bool = True
    bytes_measured: bool = True

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Machine:
    """What works: cores, GPUs, and the run options that say how many processes there are."""

    cores: int
    gpus: int
    options: RunOptions

    @classmethod
    def of(cls, options: RunOptions) -> Machine:
        """This machine."""
        try:
            return cls(cores(), len(gpu_numbers(options.device)), options)
        except UserError:  # a GPU that is not there: `preflight` says it
            return cls(cores(), 0, options)

    def seconds(self, stage: Stage[Any], units: int, shards: int, cpu: float, flops: float) -> float:
        """Seconds for `units` in shards; each costs `cpu` seconds of a core and `flops` operations."""
        network = stage.worker_kind == "model"
        workers = local_workers(self.options, self.gpus if network else 0)
        each = (self.options.worker_cpus or max(1, self.cores // workers)) if network else 1
        busy = min(workers, shards)
        return self._work(units * cpu, units * flops, min(self.cores, busy * each)) + (
            START_SECONDS if network else CPU_START_SECONDS
        )

    def seconds_of_one(self, cpu: float, flops: float) -> float:
        """Seconds of a stage over the corpus, which has all cores."""
        return self._work(cpu, flops, self.cores)

    def _work(self, cpu: float, flops: float, busy: int) -> float:
        if self.gpus and flops:
            return cpu / busy + flops / (GPU_OPERATIONS_A_SECOND * self.gpus)
        return (cpu + flops / OPERATIONS_A_SECOND) / busy


def estimate(
    project: Project, states: Mapping[str, State], names: Collection[str] | None = None
) -> dict[str, Expected]:
    """What the missing units of each stage, or of each of `names`, will take.

    A few media files are opened if nothing was measured. The settings of other stages are not looked at: their networks
    may name packages that are not installed.
    """
    needed = states if names is None else {name: states[name] for name in states if name in names}
    usual = Usual(project, states)
    measured = _measured(project.store, needed, usual)
    for name, one in measured.items():
        if one.seconds is None or one.bytes is None:
            with contextlib.suppress(UserError):  # of a network that nobody knows: `preflight` says it
                seconds, size = usual.today(name)
                measured[name] = replace(
                    one, seconds=seconds if one.seconds is None else one.seconds,
                    bytes=size if one.bytes is None else one.bytes,
                )  # fmt: skip
    return measured


def assumptions(project: Project, expected: Mapping[str, Expected]) -> str:
    """What the estimates among these figures assume, as the end of a sentence; "" if all were measured."""
    if all(one.seconds_measured and one.bytes_measured for one in expected.values()):
        return ""
    machine, sample = Machine.of(project.experiment.run), project.sampled
    media = ""
    if sample is not None and not sample.files:
        media = "without what decoding takes, as no media file could be opened in time, "
    elif sample is not None:
        media = f"from {' and '.join(_sampled(sample))}, "
    speed = f"of {GPU_OPERATIONS_A_SECOND / 1e12:.0f} TFLOP/s"
    gpus = f"with {machine.gpus} GPUs {speed}" if machine.gpus else "without a GPU"
    return f"{media}for {machine.cores} cores {gpus}"


def _sampled(sample: Sample) -> Iterator[str]:
    """What was looked at of each kind, in words."""
    if videos := sample.files - sample.clouds:
        yield f"{'1 video' if videos == 1 else f'{videos} videos'} ({sample.seconds:.1f} s on average)"
    if sample.clouds:
        yield f"{sample.clouds} point clouds ({sample.points:,.0f} points on average)"


def _measured(store: Store, states: Mapping[str, State], usual: Usual) -> dict[str, Expected]:
    """What earlier runs on this store give; None where a stage never ran here.

    What a stage took with other settings is multiplied with the ratio of the usual costs of both, and is an estimate
    then; other weights or learning rates cost the same.
    """
    reports, together = _reports(store), {name for group in passes(states) for name in group[1:]}
    out = {}
    for name, state in states.items():
        todo = len(state.missing)
        if not todo:
            out[name] = Expected(0.0, 0.0)
            continue
        made = {fp: components for fp, (_, components) in store.index.fingerprints(name).items()}
        factors = {fp: usual.factors(name, components.get("params", {})) for fp, components in made.items()}
        each, exact = _seconds_each(reports.get(name, ()), factors, name in together)
        size = _bytes_each(store, name, state)
        growth = [bytes_ for _, bytes_ in factors.values()]
        factor = sum(one or 1.0 for one in growth) / max(1, len(growth))
        out[name] = Expected(
            None if each is None else each * todo, None if size is None else size * factor * todo,
            exact, size is not None and all(_is_one(one) for one in growth),
        )  # fmt: skip
    return out


Factors = tuple[float | None, float | None]
"""By how much a stage's seconds and bytes grow from earlier settings to today's; None, taken for 1: nobody knows."""


def _seconds_each(
    reports: Sequence[Mapping[str, Any]], factors: Mapping[str, Factors], follows: bool
) -> tuple[float | None, bool]:
    """Seconds of a unit by the reports of earlier runs, and whether all of them cost what it costs today."""
    seconds, units, exact = 0.0, 0, True
    for report in reports:
        if report.get("shared_with"):
            continue  # its time is that of the other stage
        factor, _ = factors.get(report.get("fingerprint", ""), (None, None))
        seconds, units = seconds + (factor or 1.0) * report["seconds"], units + report["ran"]
        exact = exact and _is_one(factor)
    if units:
        return seconds / units, exact
    if follows and any(report.get("shared_with") for report in reports):
        return 0.0, True  # the first stage of its pass has its time
    return None, False


def _is_one(factor: float | None) -> bool:
    return factor is not None and abs(factor - 1) < 1e-6


def _reports(store: Store) -> dict[str, list[dict[str, Any]]]:
    """The reports of earlier runs by stage, of those that made anything."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in store.index.runs(RUNS_READ):
        for report in run["summary"].get("reports", []):
            if report["ran"]:
                found.setdefault(report["stage"], []).append(report)
    return found


def _bytes_each(store: Store, name: str, state: State) -> float | None:
    """Mean bytes of a unit over everything this stage made in the store."""
    if state.stage.over == "corpus":
        sizes = [tree_bytes(folder) for folder in (store.root / "runs" / name).glob("*")]
        return sum(sizes) / len(sizes) + _kept_bytes(store, state) if sizes else None
    items, size = store.index.stage_totals(name)
    return size / items if items else None


def _kept_bytes(store: Store, state: State) -> float:
    """Mean bytes of what a stage over the corpus keeps beside its folder; 0 where that is there already."""
    kept = state.stage.keeps(state.fingerprint)
    if kept is None or store.index.segments(kept[1].hex):
        return 0.0
    _, size = store.index.stage_totals(kept[0])
    return size / max(1, len(store.index.fingerprints(kept[0])))


class Usual:
    """Seconds and bytes of missing work by the usual costs of its kind."""

    def __init__(self, project: Project, states: Mapping[str, State]) -> None:
        self._facts = Facts(project.stages, lambda: project.sample, _words(project))
        self._contents, self._store, self._states = project.contents, project.store, states
        self._machine = Machine.of(project.experiment.run)
        self._today: dict[str, tuple[float | None, float | None]] = {}
        self._followers = {name for group in passes(states) for name in group[1:]}

    def factors(self, name: str, earlier: Mapping[str, Any]) -> Factors:
        """By how much a stage's seconds and bytes grow from earlier params to today's; 1 where they are the same."""
        state = self._states[name]
        today = state.fingerprint.components.get("params", {})
        changed = {key: value for key, value in earlier.items() if today.get(key) != value}
        if not changed and today.keys() <= earlier.keys():
            return 1.0, 1.0
        fields = type(state.stage.params).model_fields
        then = copy.copy(state.stage)
        lacking = {key: fields[key].default for key in today.keys() - earlier.keys() if key in fields}
        then.params = state.stage.params.model_copy(
            update=lacking | {key: value for key, value in changed.items() if key in fields}
        )
        try:
            pairs = list(zip(self.today(name), self._cost(name, then), strict=True))
        except (ArithmeticError, LookupError, TypeError, ValueError, UserError):  # params of another version
            return None, None
        seconds, size = (new / old if new is not None and old else None for new, old in pairs)
        return seconds, size

    def today(self, name: str) -> tuple[float | None, float | None]:
        """Seconds and bytes of a stage's missing units, computed once; None for what no cost is known of."""
        if name not in self._today:
            self._today[name] = self._cost(name, self._states[name].stage)
        return self._today[name]

    def _cost(self, name: str, stage: Stage[Any]) -> tuple[float | None, float | None]:
        """Seconds and bytes of the missing units of a stage with the settings of `stage`."""
        todo = len(self._states[name].missing)
        if stage.over == "corpus":
            whole = corpus_cost(stage, self._facts, self._contents.of_kind(stage.kind), self._unit)
            if whole is None:
                return None, None
            return whole.start + self._machine.seconds_of_one(whole.cpu, whole.flops), whole.bytes
        cost = unit_cost(stage, self._facts)
        if cost is None:
            return None, None
        if not todo:
            return 0.0, 0.0
        cpu = cost.cpu + (0.0 if name in self._followers else cost.decode)
        shards = -(-todo // shard_size(len(self._states[name].keys), stage.shard_items))
        seconds = self._machine.seconds(stage, todo, shards, cpu, cost.flops)
        return seconds, todo * cost.bytes + shards * SEGMENT_BYTES

    def _unit(self, name: str) -> UnitCost | None:
        """The cost of a unit; of imported features, or of a package's extractor, the bytes that the store has."""
        known = unit_cost(self._states[name].stage, self._facts)
        size = _bytes_each(self._store, name, self._states[name]) if known is None else None
        return known if size is None else UnitCost(outputs={"": size})


def _words(project: Project) -> float:
    """Mean number of words of a caption."""
    captions = project.contents.captions()
    return sum(len(caption.text.split()) for caption in captions.values()) / max(1, len(captions))
