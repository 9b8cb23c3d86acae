"""Another ffmpeg than the one that made a corpus: it is said, and what is there can be kept."""

from __future__ import annotations

import shutil
import stat

import pytest

from pipeline.media import video

GARE = '\n[trainers.gare]\nmode = "frozen"\n'

KEEP = ("--set", "run.keep_decoded=true")


@pytest.fixture
def newer(small, monkeypatch):
    """Three videos that the ffmpeg here compressed, which then says that it is another."""
    assert small.run("stage", "compress", small.toml).code == 0
    before = video.ffmpeg_version()
    monkeypatch.setattr(video, "ffmpeg_version", lambda: "99.1")
    return small, before


def test_a_plan_says_that_another_ffmpeg_makes_a_corpus_stale(newer):
    small, before = newer
    said = small.run("plan", small.toml).out
    assert f"compress of 3 items was made with ffmpeg {before}, and this machine has 99.1" in said
    assert "run.keep_decoded = true keeps what is there" in said
    assert small.plan()["compress"]["missing"] == 3


@pytest.mark.slow
def test_what_another_ffmpeg_made_is_kept_where_that_is_asked_for(newer):
    small, _ = newer
    assert small.plan(*KEEP)["compress"]["cached"] == 3
    assert "it is kept (run.keep_decoded)" in small.run("plan", small.toml, *KEEP).out
    shutil.copy(small.folder / "clip00.mp4", small.folder / "more.mp4")
    with (small.folder / "more.mp4").open("ab") as file:
        file.write(b"\0")  # another item
    small.corpus(["clip00.mp4", "clip01.mp4", "clip02.mp4", "more.mp4"])
    assert small.run("stage", "compress", small.toml, *KEEP).code == 0
    assert small.plan(*KEEP)["compress"]["cached"] == 4
    assert len(list((small.store / "segments" / "compress").iterdir())) == 1  # no second fingerprint


def test_the_same_ffmpeg_is_no_word(small):
    assert small.run("stage", "compress", small.toml).code == 0
    assert "made with" not in small.run("plan", small.toml).out


def test_the_shipped_ffmpeg_comes_before_the_systems(tmp_path, monkeypatch):
    other = tmp_path / "ffmpeg"
    other.write_text("#!/bin/sh\necho 'ffmpeg version 1.0'\n")
    other.chmod(other.stat().st_mode | stat.S_IXUSR)
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "imageio_ffmpeg" in video.find_ffmpeg.__wrapped__()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(other))
    assert video.find_ffmpeg.__wrapped__() == str(other)


@pytest.mark.slow
def test_a_report_is_drawn_of_what_is_finished(made):
    text = made.toml.read_text().replace('["hlformer"]', '["gare", "hlformer"]')
    made.experiment(text.replace("\n[run]", GARE + "\n[run]"))
    ended = made.run("report", made.toml)
    assert ended.code == 0 and "without evaluate-gare: pack-gare is not done yet" in ended.err
    (page,) = (made.store / "runs" / "report").glob("*/report.html")
    assert "<strong>pack-gare stopped</strong>" in page.read_text()
