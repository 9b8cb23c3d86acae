"""A length that is announced and one that is there: truncated, stretched, or healthy though they differ."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pipeline.errors import ItemError
from pipeline.media import video
from pipeline.media.video import Compression, compress, probe, serve_probe

PICTURE = ("-f", "lavfi", "-i", "testsrc=duration=3:size=64x48:rate=25")


def sound(seconds: float) -> tuple[str, ...]:
    return "-f", "lavfi", "-i", f"sine=duration={seconds}", "-c:a", "mp2"


def seen(path: Path) -> dict[str, object]:
    """What `corpus check` learns of a file."""
    told: dict[str, object] = {}
    serve_probe({"path": str(path)}, lambda header, arrays: told.update(header))
    return told


@pytest.fixture
def stretched(tmp_path, run_ffmpeg) -> Path:
    """An .mp4 of 2 s, 49 frames, one of which has a duration of 520 s: its header still announces 2 s."""
    path = tmp_path / "stretched.mp4"
    run_ffmpeg(
        *PICTURE[:3], "testsrc=duration=2:size=64x48:rate=25", "-vf", "select='not(eq(n,30))'", "-fps_mode",
        "passthrough", "-bf", 0, "-video_track_timescale", 25, path,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    at = data.index(b"stts") + 8
    (entries,) = struct.unpack_from(">I", data, at)
    for entry in range(entries):
        place = at + 4 + 8 * entry
        if struct.unpack_from(">II", data, place) == (1, 2):
            struct.pack_into(">II", data, place, 1, 13_000)
            break
    else:
        pytest.fail("the clip has no gap to be stretched")
    path.write_bytes(data)
    return path


def test_a_wrong_time_stamp_that_stretches_a_video_is_damage(stretched, tmp_path):
    words = "damaged: it announces 2.0 s, but the times of its 49 frames reach 52"
    with pytest.raises(ItemError, match=words):
        compress(stretched, tmp_path / "out.mp4", Compression(), 60)
    assert not (tmp_path / "out.mp4").exists()
    assert str(seen(stretched)["trouble"]).startswith(words)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ts", ()), ("a.m2ts", ("-f", "mpegts", "-mpegts_m2ts_mode", 1)), ("a.mpg", ()), ("a.vob", ("-f", "vob")),
        ("a.mkv", ("-write_crc32", 0)), ("a.mp4", ()), ("a.avi", ()), ("a.flv", ("-c:a", "pcm_s16le", "-ar", 44100)),
    ],
)  # fmt: skip
def test_a_video_whose_sound_outlasts_its_picture_is_healthy(run_ffmpeg, tmp_path, name, options):
    path = tmp_path / name
    run_ffmpeg(*PICTURE, *sound(12), "-map", "0:v", "-map", "1:a", *options, path)
    if name.endswith(".mkv"):  # as written by others than ffmpeg, which say no length of each stream
        data = path.read_bytes()
        assert data.count(b"DURATION") == 2
        path.write_bytes(data.replace(b"DURATION", b"XURATION"))
    times = compress(path, tmp_path / "out.mp4", Compression(), 60)
    assert len(times) in (9, 10) and times[-1] < 3.2
    told = seen(path)
    assert told["trouble"] == "" and told["picture_seconds"] == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_video_that_is_cut_off_is_named_with_both_lengths(clip_of, tmp_path, suffix):
    more = ("-movflags", "+faststart") if suffix == "mp4" else ()
    path = clip_of(tmp_path / f"a.{suffix}", 20, "160x120", 25, 0, *more)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    words = r"truncated or damaged: it announces 20\.\d s, \d+\.\d s "
    with pytest.raises(ItemError, match=words + "can be decoded"):
        compress(path, tmp_path / "out.mp4", Compression(), 60)
    assert "truncated or damaged: it announces 20" in str(seen(path)["trouble"])


def test_a_length_announced_too_short_is_no_damage_where_the_frames_are_there(clip_of, tmp_path):
    path = clip_of(tmp_path / "a.mkv", 12)
    data = path.read_bytes()
    assert data.count(b"00:00:12.") == 1
    path.write_bytes(data.replace(b"00:00:12.", b"00:00:02."))
    assert probe(path).seconds == pytest.approx(2, abs=0.1)
    assert len(compress(path, tmp_path / "out.mp4", Compression(), 60)) == 36
    assert seen(path)["trouble"] == ""


def test_the_first_error_of_ffmpeg_is_the_reason(clip_of, tmp_path, monkeypatch):
    words = (
        "[mov,mp4,m4a,3gp,3g2,mj2 @ 0x5581] moov atom not found\\n[in#0 @ 0x5582] Error opening input: Invalid data\\n"
        "Error opening input files: Invalid data found when processing input\\n"
    )
    broken = tmp_path / "ffmpeg"
    broken.write_text(f"#!/bin/sh\nprintf '\\n{words}' >&2\nexit 1\n")
    broken.chmod(0o755)
    clip_of(tmp_path / "in.mp4", 1)
    monkeypatch.setattr(video, "find_ffmpeg", lambda: str(broken))
    with pytest.raises(ItemError) as raised:
        compress(tmp_path / "in.mp4", tmp_path / "out.mp4", Compression(), 60)
    assert raised.value.reason == "ffmpeg could not read it: moov atom not found"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n",
            "it is a Git LFS pointer and not",
        ),
        (b"\xef\xbb\xbf\n<!-- x --><!DOCTYPE HTML><html><body>Sign in</body></html>", "it is an HTML page"),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "it is an error message in XML"),
        (b"/annex/objects/SHA256E-s5--12.mp4\n", "it is a git-annex pointer and not the file itself"),
        (b"PK\x03\x04" + b"x" * 2000, "it is a ZIP archive"),
        (b"\0" * 5000, "it is filled with zero bytes at its beginning"),
        (b"", "the file is empty (0 bytes)"),
    ],
)
def test_a_file_that_is_something_else_is_named_as_what_it_is(tmp_path, content, words):
    from pipeline.media.clouds.read import read

    for name, opened in (("a.mp4", seen), ("a.ply", read)):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ItemError) as raised:
            opened(path)
        assert raised.value.reason.startswith(words)
