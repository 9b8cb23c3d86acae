"""A runner over stages of its own: what it reads of the store, and what other runs do to the store meanwhile."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.corpus.contents import Contents, RememberedDigests
from pipeline.corpus.manifest import Caption, Corpus, Item
from pipeline.errors import UserError
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.work import Work
from pipeline.run.execute import Report, Runner
from pipeline.run.plan import ancestors, order
from pipeline.run.pool import Events, Message
from pipeline.run.stage import Stage
from pipeline.settings import Params
from pipeline.store.fields import Field
from pipeline.store.fingerprint import digest_text
from pipeline.store.segments import SegmentWriter
from pipeline.store.store import Store

FIELDS = {"row": Field("float32", (None, 2))}
TABLE = "SELECT item, segment, row, file_bytes FROM artifacts"


class Nothing(Params):
    """No settings."""


class Any_(Stage[Nothing]):
    """A stage whose attributes are those of the instance."""

    settings, fields, runner = Nothing, FIELDS, "nowhere:run"

    def __init__(self, name: str, *needs: str, over: str = "items", one_pass: bool = False) -> None:
        super().__init__(Nothing())
        self.name, self.needs, self.over, self.one_pass = name, needs, over, one_pass  # type: ignore[misc,assignment]

    def splits(self) -> tuple[str, ...]:
        return ("train",) if self.over == "corpus" else ()


class Here:
    """An engine without processes: it writes segments as a worker does, and fails the units it is told to."""

    def __init__(self, store: Store, broken: Mapping[str, set[str]]) -> None:
        self.store, self.broken, self.passes = store, broken, []  # type: ignore[var-annotated]
        self.more: dict[str, Any] = {}  # what the last reply of a shard says besides

    def run(self, work: Work) -> Events:
        self.passes.append([spec["components"]["stage"] for spec in work.stages])
        for shard in work.shards:
            made = {}
            for number, spec in enumerate(work.stages):
                name, fp = spec["components"]["stage"], spec["fingerprint"]
                folder = self.store.segments_folder(name, fp)
                with SegmentWriter(
                    folder, self.store.root / "work", name, fp, spec["components"], FIELDS
                ) as writer:
                    for key in (key for key in shard if number in work.lacking[key]):
                        for path, _ in work.units[key].get("rows", {}).values():
                            assert Path(path).is_file()
                        unit = work.units[key]["name"]
                        if unit in self.broken.get(name, set()):
                            yield Message({"failed": key, "name": unit, "reason": "no", "stage": name})
                            continue
                        writer.append(key, unit, {"row": np.ones((1, 2), np.float32)})
                    items, path = dict(writer.items), writer.finish()
                size = path.stat().st_size if path else 0
                made[name] = {"segment": path and path.stem, "bytes": size, "items": items}
            yield Message({"segments": made, "decodes": 0, **self.more})

    def close(self) -> None:
        """Nothing is kept."""


class Folder:
    """Stands for the process of stages over the corpus: it writes one file."""

    def run(
        self, entry: str, request: Mapping[str, Any], env: Any, keep: bool, tell: Callable[[Any], None]
    ) -> None:
        (Path(request["folder"]) / "made").write_text("x")

    def close(self) -> None:
        """Nothing is kept."""


def stages() -> dict[str, Stage[Any]]:
    found = [
        Any_("prepared"), Any_("seen", "prepared", one_pass=True), Any_("heard", "prepared", one_pass=True),
        Any_("texts", over="captions"), Any_("pack", "seen", "texts", over="corpus"),
        Any_("train", "pack", over="corpus"),
    ]  # fmt: skip
    return {stage.name: stage for stage in found}


NAMES = ("a", "b", "c", "d")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Runner]]:
    """`run(broken)` is a new runner on the one store, as another process would have it."""
    items = tuple(Item(n, "train", (Caption(f"{n}#0", f"text {n}"),), f"{n}.mp4") for n in NAMES)
    digests = {name: digest_text(name) for name in NAMES}
    contents = Contents(Corpus(tmp_path / "corpus.jsonl", items), digests)
    made: list[Runner] = []

    def new(broken: Mapping[str, set[str]] | None = None) -> Runner:
        store = Store(tmp_path / "store")
        runner = Runner(stages(), contents, store, RememberedDigests(store.index), RunOptions(device="cpu"))
        runner.engine, runner._corpus_process = Here(store, broken or {}), Folder()  # type: ignore[assignment]
        made.append(runner)
        return runner

    yield new
    for runner in made:
        runner.store.index.close()


def everything(runner: Runner, **orders: Any) -> list[Report]:
    names = order(runner.stages)
    return [runner.bring_up_to_date(name, along=names, **orders) for name in names]


def counted(runner: Runner) -> list[str]:
    """The statements that read the table of a stage's artifacts, from now on."""
    reads: list[str] = []
    runner.store.index.db.set_trace_callback(lambda sql: reads.append(sql) if sql.startswith(TABLE) else None)
    return reads


def test_a_run_reads_the_table_of_each_stage_twice_when_it_makes_it_and_once_when_it_is_made(run):
    runner = run()
    reads = counted(runner)
    assert [report.ran for report in everything(runner)] == [4, 4, 4, 4, 1, 1]
    assert len(reads) == 2 * 4  # before and after; six surveys of the plan would be 24, and were 68
    again = run()
    reads = counted(again)
    assert [report.ran for report in everything(again)] == [0] * 6
    assert len(reads) == 4


def test_beside_a_run_that_writes_all_the_time_no_more_than_a_stage_and_its_ancestors_are_read_a_lock(run):
    runner, other = run(), run()
    dict(runner.states)
    reads = counted(runner)
    for name in order(runner.stages):
        before = len(reads)
        other.store.index.start_run(name, "another")  # any write of another process
        runner.bring_up_to_date(name)
        mapped = [n for n in ancestors(runner.stages, [name]) if runner.stages[n].over != "corpus"]
        assert len(reads) - before <= len(mapped) + 1  # under the lock, and the stage again once it is made


def test_what_another_run_made_since_the_first_look_is_not_made_again(run):
    runner, other = run(), run()
    runner.bring_up_to_date("prepared")
    assert runner.states["texts"].missing
    other.bring_up_to_date("texts")
    report = runner.bring_up_to_date("texts")
    assert (report.ran, report.cached) == (0, 4)
    assert runner.engine.passes == [["prepared"]]


def test_what_another_run_dropped_to_make_it_again_is_waited_for_or_made(run):
    runner, other = run(), run()
    runner.bring_up_to_date("prepared")
    prepared = runner.states["prepared"]
    other.store.index.forget_items(prepared.fingerprint.hex, list(prepared.keys)[:2])
    other.store.drop_unused_segments("prepared", prepared.fingerprint.hex)
    report = runner.bring_up_to_date("seen")
    assert (report.ran, report.failed, report.blocked) == (4, 0, 0)
    assert runner.engine.passes == [["prepared"], ["prepared"], ["seen"]]
    assert runner.states["prepared"].complete


def test_segments_that_moved_by_another_runs_redo_are_read_where_they_are_now(run):
    runner, other = run(), run()
    runner.bring_up_to_date("prepared")
    assert other.bring_up_to_date("prepared", redo=True).ran == 4
    assert runner.bring_up_to_date("seen").ran == 4  # the engine looks for the files of its rows


def test_segments_on_disk_that_the_index_lacks_are_adopted_not_made_again(run):
    runner, killed = run(), run()
    assert runner.states["prepared"].missing
    fp = killed.states["prepared"].fingerprint
    folder = killed.store.segments_folder("prepared", fp.hex)
    with SegmentWriter(
        folder, killed.store.root / "work", "prepared", fp.hex, fp.components, FIELDS
    ) as writer:
        for key in killed.states["prepared"].keys[:3]:
            writer.append(key, key, {"row": np.ones((1, 2), np.float32)})
        writer.finish()
    report = runner.bring_up_to_date("prepared")
    assert (report.cached, report.ran) == (3, 1)


def test_a_failure_blocks_what_needs_it_and_a_retry_makes_both_and_whatever_was_made_without(run):
    runner = run({"prepared": {"b"}})
    reports = {report.stage: report for report in everything(runner)}
    assert [(r.ran, r.failed, r.blocked) for r in reports.values()] == [
        (3, 1, 0), (3, 0, 1), (3, 0, 1), (4, 0, 0), (1, 0, 0), (1, 0, 0),
    ]  # fmt: skip
    assert reports["prepared"].failures == [{"name": "b", "reason": "no", "kind": "failed"}]
    again = run()
    assert [report.ran for report in everything(again)] == [0] * 6  # a failed item is not tried unasked
    retried = run()
    reports = {report.stage: report for report in everything(retried, retry_failed=True)}
    assert [(r.ran, r.failed, r.blocked) for r in reports.values()] == [
        (1, 0, 0), (1, 0, 0), (1, 0, 0), (0, 0, 0), (1, 0, 0), (1, 0, 0),
    ]  # fmt: skip


def test_a_redo_makes_everything_again_and_companions_share_the_pass(run):
    everything(run())
    runner = run()
    reports = {report.stage: report for report in everything(runner, redo=True)}
    assert [report.ran for report in reports.values()] == [4, 4, 4, 4, 1, 1]
    assert runner.engine.passes == [["prepared"], ["seen", "heard"], ["texts"]]
    assert reports["heard"].shared_with == "seen"


def test_a_pass_that_is_interrupted_leaves_what_it_recorded_known(run):
    runner = run()
    whole = runner.engine.run

    def cut_short(work: Work) -> Events:
        events = whole(work)
        yield next(events)
        raise UserError("stopped here")

    runner.engine.run = cut_short
    with pytest.raises(UserError, match="stopped here"):
        runner.bring_up_to_date("prepared")
    runner.engine.run = whole
    report = runner.bring_up_to_date("prepared")
    assert (report.cached, report.ran) == (1, 3)


def test_a_pass_says_where_its_time_went_and_once_in_a_run_that_there_is_no_shared_memory(run):
    runner = run()
    said: list[str] = []
    runner.say = said.append
    seconds = {"decode": 1.0, "network": 3.0, "all": 4.0}
    runner.engine.more = {"seconds": seconds, "decoders": 2, "unshared": "Cannot allocate memory"}
    reports = {report.stage: report for report in everything(runner)}
    shards = len(NAMES)
    assert reports["seen"].parts == {part: shards * value for part, value in seconds.items()}
    assert reports["heard"].parts == {} and reports["heard"].shared_with == "seen"
    assert runner.reports[1]["parts"] == reports["seen"].parts  # in the record of the run
    (line,) = [sentence for sentence in said if sentence.startswith("seen + heard: ")]
    assert line.endswith("decode 4.0 s (25 %), network 12.0 s (75 %); 2 decoders ahead of each worker")
    (unshared,) = [sentence for sentence in said if "shared memory" in sentence]
    assert "Cannot allocate memory" in unshared and "run.decoders or run.workers" in unshared


class Watched(Here):
    """The same engine, which notes the memory that Python has handed out when its work comes, and does none of it."""

    traced = 0

    def run(self, work: Work) -> Events:
        self.traced = tracemalloc.get_traced_memory()[0]
        yield from ()


@pytest.mark.parametrize(("over", "most_bytes"), [("items", 350), ("captions", 350)])
def test_a_pass_over_many_units_does_not_hold_the_data_of_each_before_its_shard(tmp_path, over, most_bytes):
    count = 5000
    items = tuple(Item(f"{n}", "train", (Caption(f"{n}#0", f"text {n}"),), f"{n}.mp4") for n in range(count))
    digests = {item.id: digest_text(item.id) for item in items}
    contents, store = Contents(Corpus(tmp_path / "corpus.jsonl", items), digests), Store(tmp_path / "store")
    one = {"pass": Any_("pass", over=over)}
    runner = Runner(one, contents, store, RememberedDigests(store.index), RunOptions(device="cpu"))
    runner.engine = engine = Watched(store, {})
    assert len(runner.states["pass"].missing) == count
    tracemalloc.start()
    try:
        runner.bring_up_to_date("pass")
    finally:
        tracemalloc.stop()
        store.index.close()
    assert 0 < engine.traced < most_bytes * count  # 690 a unit where all were described before
