"""The line about a stage's time names each part that there was, with seconds and shares."""

from __future__ import annotations

from pipeline.run.time_spent import TimeSpent


def test_the_parts_of_all_shards_are_summed_and_shown_beside_the_whole():
    spent = TimeSpent()
    spent.add(
        {
            "seconds": {"decode": 30.0, "wait": 1.0, "network": 80.0, "write": 1.5, "device": 3, "all": 90},
            "decoders": 1,
        }
    )
    spent.add(
        {
            "seconds": {"decode": 20.0, "copy": 0.25, "preprocess": 4.0, "all": 10.0},
            "decoders": 3,
            "segments": {},
        }
    )
    assert spent.line("clip + frames") == (
        "clip + frames: of 100.0 s of its workers, decode 50.0 s (50 %), preprocess 4.0 s (4 %), copy 0.2 s (0 %), "
        "network 80.0 s (80 %), write 1.5 s (2 %), waiting for frames 1.0 s (1 %); 3 decoders ahead of each worker"
    )
    assert spent.as_json() == {
        "decode": 50.0, "preprocess": 4.0, "copy": 0.25, "network": 80.0, "write": 1.5, "wait": 1.0, "all": 100.0
    }  # fmt: skip


def test_a_stage_without_network_or_decoding_or_of_no_time_says_nothing():
    spent = TimeSpent()
    assert spent.line("clip") == "" and spent.as_json() == {}
    spent.add({"seconds": {"write": 5.0, "preprocess": 3.0, "all": 9.0}})
    assert spent.line("compress") == ""
    short = TimeSpent()
    short.add({"seconds": {"write": 0.1, "network": 0.2, "all": 0.5}})
    assert short.line("clip") == ""
