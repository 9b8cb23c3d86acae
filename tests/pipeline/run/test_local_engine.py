"""Advice of the local engine about settings that this machine cannot serve well."""

from __future__ import annotations

import re

import pytest

from pipeline.run.engines import local, machine
from pipeline.run.engines.local import LocalEngine, too_many
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.work import Work


@pytest.mark.parametrize(
    ("options", "workers", "words"),
    [
        ({"workers": 9}, 9, r"run\.workers = 9 is more than the 4 cores here"),
        ({"workers": 2, "worker_cpus": 3}, 2, r"run\.workers = 2 of 3 cores is more than the 4 cores here"),
        ({"decoders": 3}, 2, r"run\.decoders = 3 for each of 2 workers is more than the 4 cores here"),
        ({"workers": 4}, 4, "^$"),
        ({"decoders": 2}, 2, "^$"),
        ({"decoders": 1}, 9, "^$"),
        ({}, 9, "^$"),
    ],
)
def test_more_workers_or_decoders_than_cores_is_one_sentence_with_the_setting(options, workers, words):
    sentence = too_many(RunOptions(**options), workers, cores=4)
    assert re.search(words, sentence), sentence
    assert sentence.count(". ") == 0


def test_the_advice_comes_once_in_a_run_and_the_work_is_done(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(local, "run_shards", lambda *_: iter([]))
    monkeypatch.setattr(local, "cores", lambda: 2)
    engine = LocalEngine(RunOptions(workers=5, device="cpu"), said.append)
    work = Work("none:none", [["a"], ["b"], ["c"]], "", {}, [], {}, {}, False)
    for _ in range(2):
        assert list(engine.run(work)) == []
    assert len(said) == 1 and "run.workers = 5" in said[0]


def test_available_memory_is_the_machines_or_the_containers(tmp_path, monkeypatch):
    assert 1 << 20 < machine.available_memory() < 1 << 50
    read = machine.Path.read_text

    def limited(path, *more, **named):
        small = {"memory.max": "5000000\n", "memory.current": "2000000\n"}
        return small.get(path.name) or read(path, *more, **named)

    monkeypatch.setattr(machine.Path, "read_text", limited)
    assert machine.available_memory() == 3_000_000
