"""What a plan says of time and disk: measured where it can be, else estimated from sampled media, and marked."""

from __future__ import annotations

import json
import os
import time

import pytest

from extractors.backbones import clip_configs
from flows import media_sample, project
from flows.costs import text_operations, vision_operations
from flows.estimate import estimate
from flows.media_sample import Sample, sample_media
from flows.project import open_project
from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Corpus, Item
from pipeline.store.store import tree_bytes


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Media are opened however slow a loaded machine is."""
    monkeypatch.setattr(media_sample, "MOST_SECONDS", 60.0)


def test_a_first_plan_estimates_every_stage_and_says_from_what(lab):
    planned = lab.plan()
    assert all(
        state["expected"]["seconds"] > 0 and state["expected"]["bytes"] > 0 for state in planned.values()
    )
    assert not any(
        state["expected"][f"{figure}_measured"]
        for state in planned.values()
        for figure in ("seconds", "bytes")
    )
    ended = lab.run("plan", lab.toml)
    lines = {line.split()[0]: line for line in ended.out.splitlines()[1:]}
    assert all(lines[name].count("~") == 2 and "?" not in lines[name] for name in planned)
    assert "~ is an estimate from 8 videos (2.0 s on average), for " in ended.out
    assert "figures without ~" not in ended.out


def test_estimated_bytes_are_those_that_are_made(made):
    fresh = open_project(made.toml, ['store="fresh"'])
    expected = estimate(fresh, fresh.survey())
    fresh.store.index.close()
    done = open_project(made.toml)
    real = {name: done.store.index.stage_totals(name)[1] for name in ("compress", "clip", "clip_text")}
    done.store.index.close()
    found = {name: (expected[name].bytes or 0.0) / size for name, size in real.items()}
    packs = ("pack-hlformer", "pack-hlformer-test")
    packed = sum(tree_bytes(made.store / "runs" / name) for name in packs)
    packed += tree_bytes(
        made.store / "segments" / "packed-hlformer"
    )  # what packing computes, for both splits
    found["packs"] = sum(expected[name].bytes or 0.0 for name in packs) / packed
    assert all(0.4 < share < 2.5 for share in found.values()), found


def test_what_was_measured_is_no_estimate_and_opens_no_media(made, monkeypatch):
    def never(contents):
        raise AssertionError("media were opened")

    monkeypatch.setattr(project, "sample_media", never)
    planned = made.plan("--set", 'extractors.clip.weights="seed:1"')
    clip, report = planned["clip"], planned["report"]
    assert clip["missing"] == 12 and clip["expected"]["seconds_measured"] and clip["expected"]["seconds"] > 0
    assert planned["compress"]["expected"] == {
        "seconds": 0.0, "bytes": 0.0, "seconds_measured": True, "bytes_measured": True
    }  # fmt: skip
    assert not report["expected"]["seconds_measured"] and report["expected"]["seconds"] > 0
    ended = made.run("plan", made.toml)
    assert "1 stages to run, ~" in ended.out and "~ is an estimate for " in ended.out


def test_what_was_measured_with_other_settings_is_scaled_and_marked(made):
    def expected(stage: str, *settings: str) -> dict[str, float]:
        return made.plan(*[word for one in settings for word in ("--set", one)])[stage]["expected"]

    as_before = expected("train-hlformer", "trainers.hlformer.lr=2e-3")
    assert as_before["seconds_measured"] and as_before["bytes_measured"]
    longer, longest = (expected("train-hlformer", f"trainers.hlformer.epochs={n}") for n in (1000, 4000))
    assert not longer["seconds_measured"] and longer["bytes_measured"]
    assert longest["seconds"] > 2 * longer["seconds"] > 4 * as_before["seconds"]
    wider = expected("train-hlformer", "trainers.hlformer.hidden_size=512")
    assert wider["bytes"] > 4 * as_before["bytes"] and not wider["bytes_measured"]
    clip = expected("clip", "extractors.clip.model=ViT-L-14", "extractors.clip.weights=seed:1")
    small = expected("clip", "extractors.clip.weights=seed:1")
    assert (
        small["seconds_measured"] and not clip["seconds_measured"] and clip["seconds"] > 10 * small["seconds"]
    )


@pytest.mark.parametrize(
    ("model", "vision", "text"),
    [("ViT-B-32", 8.82e9, 5.96e9), ("ViT-B-16", 35.13e9, 5.96e9), ("ViT-L-14", 162.03e9, 13.30e9)],
)
def test_operations_of_a_network_are_those_that_open_clip_publishes(model, vision, text):
    config = clip_configs.read(model)
    assert vision_operations(config["vision_cfg"]) == pytest.approx(vision, rel=0.05)
    assert text_operations(config["text_cfg"], 77) == pytest.approx(text, rel=0.05)


def test_videos_are_sampled_from_all_over_the_corpus_and_broken_ones_left_out(lab):
    (lab.folder / "clip00.mp4").write_bytes(b"no video")
    sample = sample_media(open_project(lab.toml).contents)
    assert sample.files == 7 and sample.short_side == 120 and sample.seconds == pytest.approx(2.0)
    assert sample.megapixels == pytest.approx(160 * 120 * 25 / 1e6)


def test_a_video_that_hangs_costs_a_plan_no_more_than_its_bound(lab, tmp_path, monkeypatch):
    (tmp_path / "stuck_probe.py").write_text("import time\ndef serve(request, send):\n    time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(media_sample, "PROBE", "stuck_probe:serve")
    monkeypatch.setattr(media_sample, "PATIENCE_SECONDS", 0.5)
    began = time.monotonic()
    ended = lab.run("plan", lab.toml, "--json")
    assert ended.code == 0 and time.monotonic() - began < 20
    assert json.loads(ended.out)["compress"]["expected"]["seconds"] is None


def test_one_video_is_sampled_however_slowly_the_machine_starts_a_process(lab, monkeypatch):
    monkeypatch.setattr(media_sample, "MOST_SECONDS", 0.0)
    sample = sample_media(open_project(lab.toml).contents)
    assert sample.files == 1 and sample.seconds == pytest.approx(2.0)


def test_a_cloud_has_as_many_points_as_its_bytes_say(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 3000)
    (tmp_path / "b.txt").write_bytes(b"x" * 6000)
    items = tuple(Item(name, "train", (), f"{name}.txt", "pointcloud") for name in "ab")
    contents = Contents(Corpus(tmp_path / "corpus.jsonl", items), {"a": "1", "b": "2"})
    assert sample_media(contents) == Sample(2, points=150, clouds=2)


def test_both_kinds_of_media_are_looked_at(tmp_path, rendered):
    (tmp_path / "a.txt").write_bytes(b"x" * 3000)
    items = (
        Item("a", "train", (), "a.txt", "pointcloud"), Item("b", "train", (), str(rendered / "clip00.mp4")),
    )  # fmt: skip
    contents = Contents(Corpus(tmp_path / "corpus.jsonl", items), {"a": "1", "b": "2"})
    found = sample_media(contents)
    assert (found.files, found.clouds, found.points) == (2, 1, 100)
    assert found.seconds == pytest.approx(2.0)
