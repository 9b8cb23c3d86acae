"""Media that are broken or odd: each works or is one named failure with a reason, and the rest finishes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from flows.project import open_project
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.media.video import decode

pytestmark = pytest.mark.slow

GOOD = ("portrait", "odd sides", "one pixel", "-leading dash", "quote's \"name\"", "naïve ünïcode", "late", "turned",
        "variable", "tall pixels", "a/same", "b/same", "8k", "new\nline")  # fmt: skip
BROKEN = {  # item -> a word of the reason
    "truncated": "truncated|could not|decoded",
    "random": "not a readable video",
    "empty": "empty",
    "text": "it is a text ('this is no video",
    "sound": "no video stream",
    "no frames": "no frame|not a readable video",
    "folder": "not a file|folder",
    "missing": "does not exist",
    "loop": "cannot be read|symbolic",
}


def draw_zoo(folder: Path, clip_of, run_ffmpeg) -> None:
    """Media of every kind of trouble, and the manifest of them and of the clips that are there."""
    for name in ("a", "b"):
        (folder / name).mkdir()
    clip_of(folder / "portrait.mp4", 2, "120x214")
    clip_of(folder / "odd sides.mkv", 2, "161x121", 25, 10, "-pix_fmt", "yuv444p")
    clip_of(folder / "one pixel.mkv", 1, "1x1", 25, 20, "-pix_fmt", "yuv444p", "-c:v", "ffv1")
    clip_of(folder / "./-leading dash.mp4", 1, hue=30)
    clip_of(folder / 'quote\'s "name".mp4', 1, hue=40)
    clip_of(folder / "naïve ünïcode.mp4", 1, hue=50)
    clip_of(folder / "a/same.mp4", 1, hue=60)
    clip_of(folder / "b/same.mp4", 1, hue=70)
    clip_of(folder / "late.mkv", 2, "160x120", 25, 80, "-output_ts_offset", "1.5")
    clip_of(folder / "plain.mp4", 2, "160x90", 25, 90)
    run_ffmpeg("-display_rotation", "90", "-i", folder / "plain.mp4", "-c", "copy", folder / "turned.mp4")
    run_ffmpeg(
        "-i",
        folder / "plain.mp4",
        "-vf",
        "select='not(mod(n,3))+lt(n,10)'",
        "-fps_mode",
        "vfr",
        folder / "variable.mp4",
    )
    run_ffmpeg("-i", folder / "plain.mp4", "-vf", "hue=h=33,setsar=1/2", folder / "tall pixels.mp4")
    clip_of(folder / "whole.mp4", 8, "160x120", 25, 100, "-movflags", "+faststart")
    content = (folder / "whole.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(content[: len(content) // 2])
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    run_ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", folder / "sound.mp4")
    clip_of(folder / "8k.mp4", 0.4, "7680x4320", 5, 110)
    clip_of(folder / "new\nline.mp4", 1, hue=120)
    with av.open(str(folder / "no frames.mkv"), "w") as container:
        stream = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        container.start_encoding()  # a header, and not a frame
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to("loop.mp4")
    names = {path.with_suffix("").relative_to(folder).as_posix(): path for path in folder.rglob("*.m[pk][4v]")
             if "store" not in path.parts}  # fmt: skip
    names["missing"] = folder / "missing.mp4"
    items = [
        Item(name, "train", (Caption(name, name),), os.path.relpath(path, folder))
        for name, path in sorted(names.items())
    ]
    write_manifest(folder / "corpus.jsonl", items)


@pytest.fixture
def zoo(small, make_once, clip_of, run_ffmpeg):
    """A corpus of every kind of trouble, in one folder with three good clips."""

    def make(folder: Path) -> None:
        shutil.copytree(small.folder, folder, dirs_exist_ok=True)
        draw_zoo(folder, clip_of, run_ffmpeg)

    shutil.copytree(make_once("zoo", make), small.folder, symlinks=True, dirs_exist_ok=True)
    return small


@pytest.fixture
def compressed_zoo(zoo, make_once):
    """That corpus after a run of the stage `compress`, whose report is in `report.json`."""

    def make(folder: Path) -> None:
        shutil.copytree(zoo.folder, folder, symlinks=True, dirs_exist_ok=True)
        lab = type(zoo)(folder)
        ended = lab.run("stage", "compress", lab.toml, "--json")
        assert ended.code == 3, ended.err
        (folder / "report.json").write_text(ended.out, encoding="utf-8")

    made = make_once("compressed-zoo", make)
    shutil.rmtree(zoo.folder)
    shutil.copytree(made, zoo.folder, symlinks=True)
    return zoo


def shape(path: Path) -> tuple[int, ...]:
    return next(decode(path, "pyav"))[0].shape  # decord knows no 2 x 2 pixels


def test_each_works_or_is_one_named_failure_and_the_rest_finishes(compressed_zoo):
    zoo = compressed_zoo
    told = json.loads((zoo.folder / "report.json").read_text(encoding="utf-8"))
    reasons = {f["name"]: f["reason"] for f in told["stages"][0]["failures"]} | told["unreadable"]
    assert set(reasons) == set(BROKEN), reasons
    for name, words in BROKEN.items():
        assert any(word in reasons[name] for word in words.split("|")), (name, reasons[name])

    project = open_project(zoo.toml)
    state = project.survey()["compress"]
    made = {
        item.id: project.store.item_file("compress", state.fingerprint.hex, key, ".mp4")
        for key, item in project.contents.items().items() if key in state.places
    }  # fmt: skip
    assert set(GOOD) <= set(made)
    assert shape(made["portrait"])[1:3] == (214, 120)
    assert shape(made["8k"])[1:3] == (224, 398)
    assert shape(made["one pixel"])[1:3] == (2, 2)
    assert all(side % 2 == 0 for side in shape(made["odd sides"])[1:3])
    assert shape(made["turned"])[1] > shape(made["turned"])[2]
    assert shape(made["tall pixels"])[1:3] == (90, 80)
    for name in GOOD:
        with av.open(str(made[name])) as container:
            assert not container.streams.audio
            packets = [p for p in container.demux(video=0) if p.pts is not None]
            assert packets[0].is_keyframe and packets[0].pts == 0, name
            keys = [float(p.pts * p.time_base) for p in packets if p.is_keyframe]
            assert max(np.diff([*keys, float(packets[-1].pts * packets[-1].time_base)]), default=0) <= 1.01, (
                name
            )
    assert not list((zoo.store / "work").rglob("*.mp4"))

    status = zoo.run("status", zoo.toml)
    assert status.code == 3
    assert all(f"failed: {name}" in status.out for name in BROKEN)
    assert "failed: new" not in status.out
    again = json.loads(zoo.run("stage", "compress", zoo.toml, "--json").out)
    assert again["stages_ran"] == 0 and again["stages"][0]["failed"] == len(told["stages"][0]["failures"])


def test_only_what_failed_is_tried_again_and_a_mended_file_is_new_work(compressed_zoo):
    zoo = compressed_zoo
    before = {path: path.stat().st_mtime_ns for path in zoo.store.rglob("*.mp4")}
    (zoo.folder / "random.mp4").write_bytes((zoo.folder / "clip00.mp4").read_bytes() + b"\0")
    told = json.loads(zoo.run("stage", "compress", zoo.toml, "--json", "--retry-failed").out)
    assert "random" not in {f["name"] for f in told["stages"][0]["failures"]}
    assert told["stages"][0]["ran"] == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_item_that_cannot_be_compressed_is_left_out_downstream_and_named(zoo):
    zoo.experiment(
        'corpus = "corpus.jsonl"\nextract = ["clip", "frames", "keyframes"]\n'
        '[extractors.clip]\nmodel = "crossreel-demo"\nweights = "seed:0"\n'
    )
    told = json.loads(zoo.run_without_prefect(zoo.toml, "--json").out)
    compress, *readers = told["stages"]
    assert len(readers) == 3
    for stage in readers:
        assert stage["failed"] == 0 and stage["blocked"] == compress["failed"], stage
        assert stage["ran"] == compress["ran"]
    why = zoo.run("why", "clip", "random", zoo.toml)
    assert "left out" in why.out and "not a readable video" in why.out
