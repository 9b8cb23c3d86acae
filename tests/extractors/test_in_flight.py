"""Batches in flight: what a device computes later is what would be computed at once, in the same order."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from extractors.base import BATCHES_IN_FLIGHT, Computed, FrameExtractor, Output, Unit, WorkOptions
from extractors.clock import Clock
from pipeline.errors import ItemError
from pipeline.settings import Params
from pipeline.store.fields import Field


class Mean(FrameExtractor[Params]):
    """The mean of each frame, computed at once."""

    name, settings = "mean", Params
    fields = {"mean": Field("float32", (None, 3)), "time": Field("float32", (None,))}
    parallel_prepare = True

    def prepare(self, frames):
        if frames.max() == 255:
            raise ItemError("somewhere", "it is white")
        return frames.mean(axis=(1, 2)).astype(np.float32)

    def encode(self, prepared):
        return {"mean": prepared * np.float32(1.5)}


class Device:
    """Computes one batch at a time in a thread, and takes `seconds` for each."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.most, self.busy = seconds, 0, 0, threading.Lock()

    def launch(self, rows):
        return Work(self, rows)


class Work:
    def __init__(self, device, rows):
        self.device, self.rows = device, rows
        device.now += 1
        device.most = max(device.most, device.now)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        with self.device.busy:
            time.sleep(self.device.seconds)

    def ready(self):
        return not self.thread.is_alive()

    def arrays(self):
        self.thread.join()
        self.device.now -= 1
        return self.rows


class OnDevice(Mean):
    """The same, on a device that returns at once and takes its time."""

    def launch(self, prepared):
        return self.device.launch(self.encode(prepared))


def loaded(kind, device="cpu", threads=1, batch_size=8, seconds=0.0):
    extractor = kind(Params())
    extractor.load(WorkOptions(device=device, batch_size=batch_size, threads=threads))
    extractor.clock, extractor.device = Clock(), Device(seconds)
    return extractor


VIDEOS = [("a", 13), ("b", 1), ("white", 9), ("c", 30), ("d", 2), ("e", 21)]


def results(extractor):
    """(name, rows and times) in the order in which the videos are finished; the reason of one that fails."""
    out = []
    rng = np.random.default_rng(0)

    def note(results):
        for result in results:
            if result is not None:
                assert isinstance(result[1], Output)
                out.append((result[0].name, {k: v.tolist() for k, v in result[1].arrays.items()}))

    for name, count in VIDEOS:
        extractor.begin(Unit(name, name), "none")
        frames = rng.integers(0, 255, (count, 4, 5, 3), np.uint8)
        if name == "white":
            frames[7] = 255
        try:
            for start in range(0, count, 6):
                note(extractor.take(frames[start : start + 6], np.arange(start, min(start + 6, count)) / 3))
            note(extractor.end())
        except ItemError as error:
            out.append((name, error.reason))
    note(extractor.flush())
    return out


@pytest.mark.parametrize("batch_size", [1, 4, 8, 64])
def test_results_are_equal_and_in_the_same_order_whether_or_not_they_come_later(batch_size):
    expected = results(loaded(Mean, batch_size=batch_size))
    assert [name for name, _ in expected if name != "white"] == ["a", "b", "c", "d", "e"]
    assert dict(expected)["white"] == "it is white"
    for seconds in (0.0, 0.003):
        later = loaded(OnDevice, batch_size=batch_size, seconds=seconds)
        found = results(later)
        assert [row for row in found if row[0] != "white"] == [row for row in expected if row[0] != "white"]
        assert dict(found)["white"] == "it is white" and later.device.now == 0
        assert later.device.most <= BATCHES_IN_FLIGHT


def test_threads_prepare_what_one_thread_prepares():
    expected = results(loaded(Mean))
    parallel = loaded(Mean, device="cuda:0", threads=4)
    assert parallel._threads is not None and loaded(Mean, threads=4)._threads is None
    assert results(parallel) == expected


def test_frames_are_made_ready_while_the_device_computes(monkeypatch):
    later, prepare = loaded(OnDevice, seconds=0.03), Mean.prepare
    at_work: list[int] = []

    def noted(self, frames):
        at_work.append(sum(not flight.ready() for flight in self._flights))
        return prepare(self, frames)

    monkeypatch.setattr(OnDevice, "prepare", noted)
    results(later)
    assert sum(number > 0 for number in at_work) > len(at_work) / 2
    assert later.device.most == BATCHES_IN_FLIGHT


def test_a_lack_of_memory_first_waits_for_what_is_in_flight_and_keeps_the_batch_size(monkeypatch):
    expected = results(loaded(Mean))
    later = loaded(OnDevice, seconds=0.02)

    def launch(prepared):
        if later.device.now:
            raise MemoryError
        return later.device.launch(later.encode(prepared))

    monkeypatch.setattr(later, "launch", launch)
    assert [r for r in results(later) if r[0] != "white"] == [r for r in expected if r[0] != "white"]
    assert later.options.batch_size == 8 and later.device.most == 1


def test_parts_of_the_time_add_up_and_are_not_counted_twice(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("extractors.clock.time.perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    clock = Clock()
    with clock.part("preprocess"):
        passes(2)
        with clock.part("write"):
            passes(3)
            with clock.part("device"):
                passes(4)
        with clock.part("write"):
            passes(1)
        passes(0.5)
    clock.add("decode", 5.0)
    assert clock.seconds == {"device": 4, "write": 4, "preprocess": 2.5, "decode": 5}


def test_computed_rows_are_there_at_once():
    rows = {"mean": np.ones((2, 3))}
    assert Computed(rows).ready() and Computed(rows).arrays() is rows
    assert loaded(Mean).give_back() is False
