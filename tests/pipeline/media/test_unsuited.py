"""Files that are no videos are named by their first bytes."""

from __future__ import annotations

import pytest

from pipeline.media.unsuited import unread


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (b"RIFF\x10\0\0\0WEBPVP8 ", "it is a WebP picture, not a video"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "it is a WAV sound, not a video"),
        (b"RIFF\x0a\0\0\0AVI LIST", ""),
        (b"MM\0*\0\0\0\x08", "it is a TIFF picture, not a video"),
        (b"ID3\x03\0\0\0\0", "it is an MP3 sound, not a video"),
        (b"fLaC\0\0\0\x22", "it is a FLAC sound, not a video"),
    ],
)
def test_a_sound_is_not_called_a_picture_and_a_broken_video_neither(tmp_path, head, named):
    path = tmp_path / "clip.mp4"
    path.write_bytes(head + bytes(100))
    assert unread(path) == named
