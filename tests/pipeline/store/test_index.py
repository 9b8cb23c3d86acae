"""The index: what was recorded is found, all of it or nothing, by any number of processes."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.errors import UserError
from pipeline.store.index import Index, Place, is_remote

ITEMS = st.sampled_from(list("abcdef"))
FPS = st.sampled_from(["one", "two"])


class IndexMachine(RuleBasedStateMachine):
    """Segments come and go, items are forgotten and fail; a table of plain Python says what should be known."""

    def __init__(self) -> None:
        super().__init__()
        self.index = Index(Path(":memory:"))
        self.places: dict[tuple[str, str], Place] = {}
        self.attempts: dict[tuple[str, str], int] = {}
        self.segments: dict[str, str] = {}

    @rule(fp=FPS, items=st.lists(ITEMS, min_size=1, unique=True))
    def add_segment(self, fp: str, items: list[str]) -> None:
        name = f"segment {len(self.segments)}-{fp}"
        self.segments[name] = fp
        self.index.add_segment(name, fp, 10, {item: row for row, item in enumerate(items)})
        for row, item in enumerate(items):
            self.places[fp, item] = Place(name, row, row)
            self.attempts.pop((fp, item), None)

    @rule(fp=FPS, item=ITEMS)
    def fail(self, fp: str, item: str) -> None:
        self.index.add_failure(fp, item, item.upper(), "broken")
        self.attempts[fp, item] = self.attempts.get((fp, item), 0) + 1

    @rule(fp=FPS, items=st.sets(ITEMS))
    def forget_items(self, fp: str, items: set[str]) -> None:
        self.index.forget_items(fp, items)
        for item in items:
            self.places.pop((fp, item), None)
            self.attempts.pop((fp, item), None)

    @rule(data=st.data())
    def forget_segment(self, data: st.DataObject) -> None:
        if self.segments:
            name = data.draw(st.sampled_from(sorted(self.segments)))
            lost = [key for key, place in self.places.items() if place.segment == name]
            assert self.index.forget_segment(name) == len(lost)
            for key in lost:
                del self.places[key]
            del self.segments[name]
            self.segments[f"{name} is gone"] = "none"  # names are not given twice

    @rule(fp=FPS)
    def forget_fingerprint(self, fp: str) -> None:
        self.index.forget_fingerprint(fp)
        self.places = {key: place for key, place in self.places.items() if key[0] != fp}
        self.attempts = {key: n for key, n in self.attempts.items() if key[0] != fp}
        self.segments = {name: "none" if of == fp else of for name, of in self.segments.items()}

    @invariant()
    def knows_what_it_should(self) -> None:
        for fp in ("one", "two"):
            assert self.index.places(fp) == {item: p for (of, item), p in self.places.items() if of == fp}
            failed = {item: f.attempts for item, f in self.index.failures(fp).items()}
            assert failed == {item: n for (of, item), n in self.attempts.items() if of == fp}
            known = {name for name, of in self.segments.items() if of == fp}
            assert set(self.index.segments(fp)) == known
            used = {place.segment for (of, _), place in self.places.items() if of == fp}
            assert set(self.index.unused_segments(fp)) == known - used

    def teardown(self) -> None:
        self.index.close()


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_a_transaction_is_all_or_nothing(tmp_path):
    index = Index(tmp_path / "index.sqlite")
    with pytest.raises(KeyError), index.transaction():
        index.add_failure("fp", "item", "name", "reason")
        raise KeyError
    assert index.failures("fp") == {}
    index.add_failure("fp", "item", "name", "reason")  # and the next one is not held up
    assert index.failures("fp")["item"].attempts == 1


def test_totals_of_a_stage_count_segments_and_files_of_all_its_fingerprints(tmp_path):
    index = Index(tmp_path / "index.sqlite")
    assert index.stage_totals("clip") == (0, 0)
    for n, stage in enumerate(["clip", "clip", "compress"]):
        index.add_fingerprint(f"fp{n}", stage, {})
        index.add_segment(f"s{n}", f"fp{n}", 100, {"a": 5, "b": None})
    assert index.stage_totals("clip") == (4, 210)


def test_runs_are_reported_newest_first_with_how_they_ended(tmp_path):
    index = Index(tmp_path / "index.sqlite")
    for name in ("a", "b"):
        index.start_run(name, "experiment")
    index.end_run("a", "done", {"failed": 2})
    assert [(run["id"], run["status"], run["summary"]) for run in index.runs()] == [
        ("b", "running", {}), ("a", "done", {"failed": 2}),
    ]  # fmt: skip
    assert [run["id"] for run in index.runs(1)] == ["b"]


def test_a_digest_is_remembered_with_the_size_and_time_it_was_taken_at(tmp_path):
    index = Index(tmp_path / "index.sqlite")
    index.remember_files([("/a\nb", 1, 2, "d"), ("/c", 3, 4, "e")])
    index.remember_files([("/c", 5, 6, "f")])
    assert index.known_files() == {"/a\nb": (1, 2, "d"), "/c": (5, 6, "f")}
    assert index.known_files_at("/c") == (5, 6, "f") and index.known_files_at("/d") is None


def test_an_index_where_none_can_be_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"none/index\.sqlite cannot be opened: unable to open"):
        Index(tmp_path / "none" / "index.sqlite")


WRITER = """
import sys
from pathlib import Path
from pathlib import Path
from pipeline.store.index import Index
index = Index(Path(sys.argv[1]))
for n in range(40):
    index.add_segment(f"{sys.argv[2]}-{n}", "fp", 1, {f"{sys.argv[2]}-{n}-{k}": None for k in range(5)})
"""


def test_several_processes_write_one_new_index_at_once(tmp_path):
    path = tmp_path / "index.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE) for n in range(4)]
    assert [writer.communicate()[1] for writer in writers] == [b""] * 4
    assert len(Index(path).places("fp")) == 4 * 40 * 5


@pytest.mark.slow
def test_a_new_index_has_all_its_tables_at_once(tmp_path):
    """Another run that opens it meanwhile would call it damaged, or would be refused the log without waiting."""
    with ThreadPoolExecutor(3) as pool:
        for number in range(400):
            path = tmp_path / f"{number}.sqlite"
            list(pool.map(lambda _, path=path: Index(path).close(), range(3)))


def test_an_index_is_opened_while_another_process_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.index.BUSY_SECONDS", 0.1)
    writer = Index(tmp_path / "index.sqlite")
    with writer.transaction():
        writer.add_failure("fp", "item", "name", "reason")
        assert Index(tmp_path / "index.sqlite").failures("fp") == {}


def test_processes_that_bring_an_old_index_up_to_date_at_once_do_it_once(tmp_path):
    for number in range(60):
        path = tmp_path / f"{number}.sqlite"
        old = Index(path)
        old.add_failure("fp", "item", "name", "its worker process died 3 times: SIGKILL")
        old.db.execute("ALTER TABLE failures DROP COLUMN kind")
        old.close()
        with ThreadPoolExecutor(3) as pool:
            kinds = list(pool.map(lambda _, path=path: Index(path).failures("fp")["item"].kind, range(3)))
        assert kinds == ["killed"] * 3


MOUNTINFO = """22 28 0:20 / /proc rw - proc proc rw
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 28 0:44 / /mnt/lab rw shared:2 - nfs4 server:/lab rw
41 40 8:2 / /mnt/lab/disk rw - xfs /dev/sdb rw
42 28 0:45 / /mnt/with\\040space rw - fuse.sshfs host:/ rw
"""


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("/home/a/index.sqlite", False),
        ("/mnt/lab/store/index.sqlite", True),
        ("/mnt/lab/disk/store/index.sqlite", False),
        ("/mnt/laboratory/index.sqlite", False),
        ("/mnt/with space/index.sqlite", True),
    ],
)
def test_a_file_system_of_several_hosts_is_known_by_its_mount(tmp_path, path, remote):
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    assert is_remote(Path(path), tmp_path / "mountinfo") is remote
    assert is_remote(Path(path), tmp_path / "none") is False


def test_an_index_that_several_hosts_share_keeps_no_memory_between_them(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.index.is_remote", lambda path: True)
    index = Index(tmp_path / "index.sqlite")
    assert index.db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    index.add_fingerprint("f", "made", {})
    index.close()
    monkeypatch.setattr("pipeline.store.index.is_remote", lambda path: False)
    assert set(Index(tmp_path / "index.sqlite").fingerprints()) == {"f"}
