"""Of a video with a window, every stage that reads frames sees the frames in it alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pipeline.corpus.manifest import Item, write_manifest
from pipeline.store.segments import Segment

EXPERIMENT = """
corpus = "corpus.jsonl"
extract = ["clip", "frames", "keyframes"]
[extractors.clip]
model = "crossreel-demo"
weights = "seed:0"
[extractors.frames]
candidates = "all"
size = 64
[extractors.keyframes]
count = 3
size = 64
[run]
workers = 1
"""
INSIDE = slice(
    2, 5
)  # of the six frames of 2 s at 3 a second, those from 0.5 s to 4/3 s, the last one included


def rows(lab: Any, stage: str) -> dict[str, dict[str, np.ndarray]]:
    """The outputs of a stage by item."""
    found = {}
    for path in (lab.store / "segments" / stage).rglob("*.h5"):
        segment = Segment(path)
        for row, name in enumerate(segment.names):
            found[name] = {field: np.array(segment.rows(field, row)) for field in segment.fields}
    return found


@pytest.mark.slow
def test_a_window_reaches_every_stage_that_reads_frames_and_changes_no_item_without_one(small: Any) -> None:
    small.experiment(EXPERIMENT)
    whole = Item("whole", "train", media="clip00.mp4")
    write_manifest(small.folder / "corpus.jsonl", [whole])
    before = small.plan()
    windows = {"part": (0.5, 4 / 3), "all": (0.0, 31.0), "later": (50.0, 60.0)}
    items = [Item(name, "train", media="clip00.mp4", window=window) for name, window in windows.items()]
    write_manifest(small.folder / "corpus.jsonl", [whole, *items])
    assert {n: s["fingerprint"] for n, s in small.plan().items()} == {
        n: s["fingerprint"] for n, s in before.items()
    }

    for stage in ("clip", "frames", "keyframes"):
        ended = small.run("stage", stage, small.toml, "--json")
        assert ended.code == 3, ended.err
        reports = {report["stage"]: report for report in json.loads(ended.out)["stages"]}
        (failure,) = reports[stage]["failures"]
        assert failure["name"] == "later" and failure["reason"] == (
            "none of its frames lies in its window, 50 s to 60 s; it ends at 1.7 s"
        )
    clip, frames, keyframes = (rows(small, stage) for stage in ("clip", "frames", "keyframes"))
    times = clip["whole"]["time"]
    assert len(times) == 6
    np.testing.assert_array_equal(clip["part"]["time"], times[INSIDE])
    np.testing.assert_allclose(clip["part"]["frame"], clip["whole"]["frame"][INSIDE], atol=2e-3)
    np.testing.assert_array_equal(frames["part"]["rgb"], frames["whole"]["rgb"][INSIDE])
    np.testing.assert_array_equal(frames["part"]["time"], times[INSIDE])
    assert keyframes["part"]["time"].tolist() == times[INSIDE].tolist(), "three frames, and three are kept"
    for name in ("rgb", "time", "index"):  # a window that holds the whole video cuts nothing
        np.testing.assert_array_equal(frames["all"][name], frames["whole"][name])
        np.testing.assert_array_equal(keyframes["all"][name], keyframes["whole"][name])
