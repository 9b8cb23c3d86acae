"""The stage `compress`: a small file with its times, and nothing that outlives a killed worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from extractors.base import Unit, WorkOptions
from extractors.compress import Compress, CompressParams
from pipeline.corpus.contents import RememberedDigests
from pipeline.errors import ItemError
from pipeline.media import video
from pipeline.store.index import Index


@pytest.fixture
def extractor() -> Compress:
    made = Compress(CompressParams())
    made.load(WorkOptions())
    return made


def test_it_makes_a_file_with_the_times_of_its_frames(extractor, rendered, tmp_path):
    output = extractor.extract(Unit("key", "name", rendered / "clip00.mp4"), tmp_path)
    assert output.file == tmp_path / "key.mp4" and output.note == {"decoder": "ffmpeg"}
    np.testing.assert_allclose(output.arrays["time"], np.arange(6) / 3, atol=1e-3)
    assert Compress.fields["time"].fits(output.arrays["time"].shape)


def test_a_broken_video_is_reported_by_its_name_and_the_others_are_made(extractor, rendered, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    units = [Unit("a", "one", rendered / "clip00.mp4"), Unit("b", "the broken one", tmp_path / "broken.mp4"),
             Unit("c", "two", rendered / "clip01.mp4")]  # fmt: skip
    results = {unit.key: output for unit, output in extractor.results(units, tmp_path)}
    assert isinstance(results["b"], ItemError) and results["b"].item == "the broken one"
    assert results["a"].file.exists() and results["c"].file.exists() and not (tmp_path / "b.mp4").exists()


def test_its_settings_are_those_that_ffmpeg_is_given(rendered, tmp_path):
    made = Compress(CompressParams(fps=5, short_side=64, crf=40, key_frame_every=1))
    made.load(WorkOptions())
    output = made.extract(Unit("key", "name", rendered / "clip00.mp4"), tmp_path)
    assert len(output.arrays["time"]) == 10
    found = video.probe(output.file)
    assert (found.width, found.height, found.codec) == (86, 64, "h264")


def test_another_ffmpeg_is_another_identity(tmp_path, monkeypatch):
    known, stage = RememberedDigests(Index(tmp_path / "index.sqlite")), Compress(CompressParams())
    before = stage.identity(known)
    monkeypatch.setattr(video, "ffmpeg_version", lambda: "0.1")
    assert stage.identity(known) != before


def test_a_full_disk_is_no_fault_of_the_video(rendered, tmp_path, monkeypatch):
    full = tmp_path / "ffmpeg"
    full.write_text("#!/bin/sh\necho 'av_interleaved_write_frame(): No space left on device' >&2\nexit 228\n")
    full.chmod(0o755)
    monkeypatch.setattr(video, "find_ffmpeg", lambda: str(full))
    with pytest.raises(OSError, match="No space left on device"):
        video.compress(rendered / "clip00.mp4", tmp_path / "out.mp4", video.Compression(), 60)


def test_sound_longer_than_the_pictures_makes_no_video_truncated(rendered, tmp_path, run_ffmpeg):
    for suffix in ("mp4", "mkv"):
        source = tmp_path / f"long.{suffix}"
        run_ffmpeg(
            "-i", rendered / "clip00.mp4", "-f", "lavfi", "-i", "sine=duration=20", "-c:v", "copy", source
        )
        assert len(video.compress(source, tmp_path / "out.mp4", video.Compression(), 60)) == 6


def test_a_codec_that_nothing_here_knows_is_that_video_s_failure(rendered, tmp_path):
    content = (rendered / "clip00.mp4").read_bytes().replace(b"avc1", b"zzzz")
    (tmp_path / "odd.mp4").write_bytes(content)
    with pytest.raises(ItemError, match="in a format that no decoder here knows"):
        video.compress(tmp_path / "odd.mp4", tmp_path / "out.mp4", video.Compression(), 60)


def test_a_title_in_no_known_encoding_does_not_matter(rendered, tmp_path, run_ffmpeg):
    run_ffmpeg("-i", rendered / "clip00.mp4", "-c", "copy", "-metadata", "title=QQQQ", tmp_path / "a.mkv")
    path = tmp_path / "b.mkv"
    path.write_bytes((tmp_path / "a.mkv").read_bytes().replace(b"QQQQ", b"\xe9\xff\xfe\xe8"))
    assert len(video.compress(path, tmp_path / "out.mp4", video.Compression(), 60)) == 6


def test_a_long_video_may_take_as_long_as_it_plays(rendered, tmp_path, monkeypatch):
    limits = []

    def finished(command, limit_seconds, source):
        limits.append(limit_seconds)
        raise subprocess.TimeoutExpired(command, limit_seconds)

    monkeypatch.setattr(video, "_finished", finished)
    for limit in (0.5, 60.0):
        with pytest.raises(ItemError, match="was not done after"):
            video.compress(rendered / "clip00.mp4", tmp_path / "out.mp4", video.Compression(), limit)
    assert limits == [2.0, 60.0]


WORKER = """
import sys
from pathlib import Path
from pipeline.media import video
video.find_ffmpeg = lambda: sys.argv[3]
video.compress(Path(sys.argv[1]), Path(sys.argv[2]), video.Compression(), 600)
"""


@pytest.mark.slow
def test_ffmpeg_ends_with_a_worker_that_is_killed(rendered, tmp_path):
    """A long video would otherwise be compressed on, by nobody's order."""
    slow = tmp_path / "ffmpeg"
    slow.write_text(f"#!/bin/sh\necho $$ > '{tmp_path}/pid'\nexec sleep 600\n")
    slow.chmod(0o755)
    command = [sys.executable, "-c", WORKER, rendered / "clip00.mp4", tmp_path / "out.mp4", slow]
    worker = subprocess.Popen([str(word) for word in command])
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text().strip()):
        assert worker.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    pid = int(pid_file.read_text())
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
