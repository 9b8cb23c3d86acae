"""Frames are those on the screen at their time, times are presentation times, and decoders agree."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ItemError, ItemKilled
from pipeline.media import video
from pipeline.media.video import (
    Compression,
    compress,
    compress_command,
    decode,
    frame_times,
    probe,
)

LOSSLESS = Compression(crf=0)


def frames(path, decoder="pyav"):
    chunks = list(decode(path, decoder))
    return np.concatenate([f for f, _ in chunks]), np.concatenate([t for _, t in chunks])


@pytest.fixture(scope="module")
def clock(tmp_path_factory, run_ffmpeg):
    """A clip of 25 fps and 4 s whose grey level is twice the number of the frame."""
    path = tmp_path_factory.mktemp("clock") / "clock.mkv"
    source = "nullsrc=size=64x64:rate=25:duration=4,format=gray,geq=lum='2*N'"
    run_ffmpeg("-f", "lavfi", "-i", source, "-c:v", "ffv1", path)
    return path


def test_each_frame_is_the_one_on_the_screen_at_its_time(clock, tmp_path):
    times = compress(clock, tmp_path / "out.mp4", LOSSLESS, 60)
    np.testing.assert_allclose(times, np.arange(12) / 3, atol=1e-3)
    pictures, decoded = frames(tmp_path / "out.mp4")
    np.testing.assert_allclose(decoded, times, atol=1e-3)
    shown = np.floor(times * 25 + 1e-6)  # the frame that began last
    levels = pictures.mean(axis=(1, 2, 3)) / 2
    np.testing.assert_allclose(levels, shown, atol=1.0)
    assert levels[0] < 1  # the first frame is kept


@pytest.mark.parametrize("fps", [1, 3, 5, 12.5])
def test_a_video_of_t_seconds_has_fps_times_t_frames(clock, tmp_path, fps):
    assert len(compress(clock, tmp_path / "out.mp4", Compression(fps=fps), 60)) == round(4 * fps)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [("640x360", (224, 398)), ("360x640", (398, 224)), ("301x301", (224, 224)), ("160x120", (120, 160)),
     ("161x99", (98, 160))],
)  # fmt: skip
def test_the_short_side_is_scaled_never_enlarged_and_even(clip_of, tmp_path, size, wanted):
    clip_of(tmp_path / "in.mkv", 1, size, 25, 0, "-pix_fmt", "yuv444p")
    compress(tmp_path / "in.mkv", tmp_path / "out.mp4", Compression(), 60)
    found = probe(tmp_path / "out.mp4")
    assert abs(found.height - wanted[0]) <= 2 and abs(found.width - wanted[1]) <= 2
    assert min(found.height, found.width) == min(wanted) and found.width % 2 == found.height % 2 == 0


def test_the_same_video_compresses_to_the_same_bytes(clock, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        compress(clock, tmp_path / name, Compression(), 60)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_decoders_agree_within_a_few_grey_levels(clip_of, tmp_path):
    clip_of(tmp_path / "in.mp4", 3)
    compress(tmp_path / "in.mp4", tmp_path / "out.mp4", Compression(), 60)
    (ours, times), (theirs, other) = (frames(tmp_path / "out.mp4", name) for name in ("decord", "pyav"))
    assert ours.shape == theirs.shape == (9, 120, 160, 3)
    np.testing.assert_allclose(times, other, atol=1e-3)
    assert np.abs(ours.astype(int) - theirs).mean() < 3


def test_a_long_video_comes_in_chunks(clip_of, tmp_path):
    clip_of(tmp_path / "in.mp4", 3, rate=25)
    sizes = [len(pictures) for pictures, _ in decode(tmp_path / "in.mp4", "pyav", chunk=32)]
    assert sizes == [32, 32, 11]


def test_a_path_is_a_file_and_nothing_else(tmp_path):
    command = compress_command(tmp_path / "-i http:x.mp4", tmp_path / "out.mp4", Compression())
    assert f"file:{tmp_path}/-i http:x.mp4" in command
    assert command[command.index("-protocol_whitelist") + 1] == "file" and "-nostdin" in command


def test_a_failed_video_leaves_no_file(tmp_path):
    (tmp_path / "in.mp4").write_bytes(b"\xfe\xff" * 100)
    with pytest.raises(ItemError, match="not a readable video"):
        compress(tmp_path / "in.mp4", tmp_path / "out.mp4", Compression(), 60)
    assert not (tmp_path / "out.mp4").exists()


def test_a_video_that_takes_too_long_is_a_named_failure(clip_of, tmp_path, monkeypatch):
    clip_of(tmp_path / "in.mp4", 1)
    stuck = tmp_path / "ffmpeg"
    stuck.write_text("#!/bin/sh\nexec sleep 600\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(video, "find_ffmpeg", lambda: str(stuck))
    with pytest.raises(ItemError, match="was not done after 1 s"):
        compress(tmp_path / "in.mp4", tmp_path / "out.mp4", Compression(), 0.5)
    assert not (tmp_path / "out.mp4").exists()


def test_times_come_from_the_packets(clip_of, tmp_path):
    clip_of(tmp_path / "in.mp4", 2, rate=10)
    np.testing.assert_allclose(frame_times(tmp_path / "in.mp4"), np.arange(20) / 10, atol=1e-3)


TEXTS = {
    "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:5,\nclip.ts\n#EXT-X-ENDLIST\n",
    "list.mkv": "ffconcat version 1.0\nfile clip.ts\nfile clip.ts\n",
    "list.avi": '\ufeff<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>\n',
    "list.webm": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "list.mov": "[playlist]\nFile1=clip.ts\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_playlist_or_concatenation_under_any_name_is_no_video(clip_of, tmp_path, name):
    clip_of(tmp_path / "clip.ts", 2)
    (tmp_path / name).write_text(TEXTS[name], encoding="utf-8")
    with pytest.raises(ItemError, match="a text that names other files, not a video"):
        compress(tmp_path / name, tmp_path / "out.mp4", Compression(), 30)
    for decoder in ("decord", "pyav"):
        with pytest.raises(ItemError):
            list(decode(tmp_path / name, decoder))
    command = compress_command(tmp_path / name, tmp_path / "out.mp4", Compression())
    ended = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    assert ended.returncode != 0 and not (tmp_path / "out.mp4").exists()  # ffmpeg itself refuses it too


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix", ["mp4", "mkv", "webm", "avi", "ts", "mpg", "flv", "wmv", "ogv", "gif", "3gp", "mxf"]
)
def test_the_containers_of_videos_are_on_the_list(clip_of, run_ffmpeg, tmp_path, suffix):
    source = clip_of(tmp_path / "source.mp4", 1)
    path = tmp_path / f"clip.{suffix}"
    codec = {"webm": ["-c:v", "libvpx"], "ogv": ["-c:v", "libtheora"], "3gp": ["-s", "176x144"]}.get(
        suffix, []
    )
    run_ffmpeg("-i", source, *codec, path)
    assert len(compress(path, tmp_path / "out.mp4", Compression(), 60)) == 3


def archived(data: bytes, folder: Path, kind: str) -> bytes:
    """A file that begins with something else and holds a video, byte for byte."""
    path = folder / "archive"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as stored:
            stored.writestr("clip", data)
    elif kind == "tar":
        with tarfile.open(path, "w") as tape:
            entry = tarfile.TarInfo("clip")
            entry.size = len(data)
            tape.addfile(entry, io.BytesIO(data))
    else:
        starts = {
            "mail": b"--boundary\r\nContent-Type: video/mp4\r\n\r\n",
            "zeros": bytes(40_000), "page": b"\n<!doctype html>",
            "unknown": b"\xd0\xcf\x11\xe0" + b"\1" * 5000,
        }  # fmt: skip
        path.write_bytes(starts[kind] + data)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "tar", "mail", "zeros", "page", "unknown"])
def test_a_video_inside_another_file_is_not_taken(clip_of, run_ffmpeg, tmp_path, kind):
    source = clip_of(tmp_path / "source.mp4", 1)
    for suffix in ("ts", "mpg", "h264", "avi"):
        inner = tmp_path / f"inner.{suffix}"
        run_ffmpeg("-i", source, *(["-c:v", "mpeg4"] if suffix == "avi" else []), inner)
        path = tmp_path / f"{kind}_{suffix}.mp4"
        path.write_bytes(archived(inner.read_bytes(), tmp_path, kind))
        with pytest.raises(ItemError):
            compress(path, tmp_path / "out.mp4", Compression(), 30)


def test_a_recording_that_begins_inside_a_packet_is_healthy(clip_of, tmp_path):
    clip_of(tmp_path / "whole.ts", 2)
    (tmp_path / "cut.ts").write_bytes((tmp_path / "whole.ts").read_bytes()[100:])
    assert len(compress(tmp_path / "cut.ts", tmp_path / "out.mp4", Compression(), 30)) == 6


def test_a_stream_of_jpegs_is_a_video_and_one_jpeg_is_a_picture(clip_of, run_ffmpeg, tmp_path):
    source = clip_of(tmp_path / "source.mp4", 2)
    run_ffmpeg("-i", source, tmp_path / "clip.mjpeg")
    assert len(compress(tmp_path / "clip.mjpeg", tmp_path / "out.mp4", Compression(), 30)) == 6
    run_ffmpeg("-i", source, "-frames:v", "1", tmp_path / "picture.jpg")
    shutil.copy(tmp_path / "picture.jpg", tmp_path / "clip.mp4")
    with pytest.raises(ItemError, match="it is a JPEG picture, not a video"):
        probe(tmp_path / "clip.mp4")


@pytest.mark.parametrize("text", ["rtsp://localhost/clip.rm\n", "1\n00:00:00,000 --> 00:00:02,000\nHello\n"])
def test_a_text_under_a_video_s_name_is_quoted(tmp_path, text):
    (tmp_path / "clip.rm").write_text(text)
    with pytest.raises(ItemError, match=re.escape(f"it is a text ({' '.join(text.split())!r}), not a video")):
        probe(tmp_path / "clip.rm")


@pytest.mark.parametrize(("short", "kind"), [(True, ItemKilled), (False, ItemError)])
def test_a_video_of_which_ffmpeg_made_nothing_for_want_of_memory_is_not_at_fault(
    run_ffmpeg, tmp_path, monkeypatch, short, kind
):
    """It ends with 0 and an empty file where a filter got no thread."""
    source = tmp_path / "in.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "testsrc=duration=1:size=64x48", "-pix_fmt", "yuv420p", source)
    words = "[swscaler @ 0x1] Failed initializing scaling graph (Resource temporarily unavailable)"
    done = subprocess.CompletedProcess([], 0, "", words)
    monkeypatch.setattr(video, "_finished", lambda *given: done)
    monkeypatch.setattr(video, "frame_times", lambda path: np.zeros(0))
    monkeypatch.setattr(video, "_memory_is_short", lambda: short)
    with pytest.raises(ItemError, match="Failed initializing scaling graph") as raised:
        compress(source, tmp_path / "out.mp4", Compression(), 60)
    assert type(raised.value) is kind
