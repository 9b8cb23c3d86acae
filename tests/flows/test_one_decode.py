"""One decode for all: a source is decoded once, a compressed video at most once, however many stages read it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.store.index import Index
from pipeline.store.segments import Segment

ALL = """
corpus = "corpus.jsonl"
extract = ["clip", "frames", "keyframes", "vgg16"]
[extractors.clip]
model = "crossreel-demo"
weights = "seed:0"
[extractors.frames]
size = 64
[extractors.keyframes]
count = 4
size = 64
[run]
workers = 2
"""
VGG16 = '[extractors.vgg16]\nmodel = "crossreel-demo"\nweights = "seed:0"\n'


def reports(ended) -> dict[str, dict]:
    assert ended.code == 0, ended.err
    return {report["stage"]: report for report in json.loads(ended.out)["stages"]}


def rows(lab, stage: str) -> dict[str, dict[str, np.ndarray]]:
    """What a stage made of each item."""
    found = {}
    for path in (lab.store / "segments" / stage).rglob("*.h5"):
        segment = Segment(path)
        for row, name in enumerate(segment.names):
            assert name not in found
            found[name] = {field: np.array(segment.rows(field, row)) for field in segment.fields}
    return found


@pytest.mark.long
def test_a_fresh_corpus_is_decoded_once_and_each_compressed_video_once(lab):
    lab.experiment(ALL + VGG16)
    planned = lab.plan()
    assert planned["clip"]["one_pass_with"] == ["clip", "frames", "keyframes"]
    said = lab.run("plan", lab.toml).out
    assert "one pass over 12 items, each decoded once: clip, frames, keyframes" in said
    ended = lab.run("stage", "vgg16", lab.toml, "--json")
    assert set(reports(ended)) == {"compress", "keyframes", "vgg16"}  # what was not asked for is not made
    ended = lab.run_without_prefect(lab.toml, "--redo", "compress")
    assert ended.code == 0, ended.err
    assert "(12 compress, 12 clip + frames)" in ended.out  # key frames were there
    made = {stage: rows(lab, stage) for stage in ("clip", "frames", "keyframes", "vgg16")}
    assert all(len(found) == 12 for found in made.values())
    lab.store.rename(lab.folder / "first")

    ended = lab.run_without_prefect(lab.toml)
    assert ended.code == 0, ended.err
    assert "24 decodes (12 compress, 12 clip + frames + keyframes)" in ended.out
    assert "keyframes: 12 made (in the pass of clip)" in ended.err
    for stage, found in made.items():  # the pass makes what each makes alone, bit for bit
        again = rows(lab, stage)
        for name, arrays in found.items():
            for field, array in arrays.items():
                np.testing.assert_array_equal(array, again[name][field], err_msg=f"{stage} {name} {field}")
    index = Index(lab.store / "index.sqlite")
    (last, *_) = index.runs(1)
    assert last["summary"]["decodes"] == 24
    index.close()
    ended = lab.run_without_prefect(lab.toml)
    assert "0 decodes" in ended.out and "0 stages ran" in ended.out


@pytest.mark.slow
def test_an_item_that_no_decoder_reads_fails_in_each_stage_of_the_pass_and_is_retried_in_one(small):
    small.experiment(ALL.replace('"clip", ', "").replace(', "vgg16"', ""))
    assert small.run("stage", "compress", small.toml).code == 0
    victim = next((small.store / "files/compress").rglob("*.mp4"))
    whole = victim.read_bytes()
    cut = bytearray(whole)
    cut[len(cut) // 4 :] = bytes(len(cut) - len(cut) // 4)  # of the right length, but noise
    victim.write_bytes(bytes(cut))
    ended = small.run_without_prefect(small.toml, "--json")
    assert ended.code == 3, ended.err
    found = {report["stage"]: report for report in json.loads(ended.out)["stages"]}
    assert [found[name]["failed"] for name in ("frames", "keyframes")] == [1, 1]
    assert (
        found["keyframes"]["shared_with"] == "frames" and found["frames"]["decodes"] == 2
    )  # the damaged one is not begun
    victim.write_bytes(whole)
    ended = small.run_without_prefect(small.toml, "--retry-failed", "--json")
    found = reports(ended)
    assert [found[name]["ran"] for name in ("frames", "keyframes")] == [1, 1]
    assert found["frames"]["decodes"] == 1 and found["keyframes"]["shared_with"] == "frames"
