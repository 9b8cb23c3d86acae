"""torchcodec as the decoder of frames: chosen by name, part of the fingerprint, and missed in one sentence."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from extractors.base import Unit, WorkOptions
from extractors.clip import Clip, ClipParams
from extractors.frames import Frames, FramesParams
from extractors.keyframes import Keyframes, KeyframesParams
from extractors.one_pass import Reading, read_together
from pipeline.errors import ItemError, UserError
from pipeline.media import video
from pipeline.run import plan


def runs_here() -> bool:
    try:
        video._torchcodec()
    except UserError:
        return False
    return True


needs_torchcodec = pytest.mark.skipif(not runs_here(), reason="needs torchcodec and the libraries of FFmpeg")


def test_the_decoder_changes_the_fingerprint_and_the_default_leaves_it_as_it_was(monkeypatch):
    monkeypatch.setattr(
        video, "version", {"decord": "0.6.0", "torchcodec": "0.13.0", "av": "18.1"}.__getitem__
    )
    default = Frames(FramesParams())
    assert default.identity(None) == {"decoder": "decord 0.6.0, else PyAV 18.1"}
    assert "decoder" not in default.decisive()
    chosen = Frames(FramesParams(decoder="torchcodec"))
    assert chosen.decisive() == default.decisive()
    assert chosen.identity(None) == {
        "decoder": "torchcodec 0.13.0, else PyAV 18.1", "decoder_name": "torchcodec"
    }  # fmt: skip


def test_stages_with_unlike_decoders_do_not_share_a_pass():
    stages = {
        "frames": Frames(FramesParams()), "keyframes": Keyframes(KeyframesParams(decoder="torchcodec")),
        "clip": Clip(ClipParams(decoder="torchcodec")),
    }  # fmt: skip
    assert plan.companions(stages, "clip") == ["keyframes"] and plan.companions(stages, "frames") == []


def test_a_missing_package_is_one_sentence_with_the_way_to_install_it(monkeypatch):
    def version(name: str) -> str:
        if name == "torchcodec":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(video, "version", version)
    with pytest.raises(
        UserError, match=r"decoder = 'torchcodec' needs the package .*crossreel\[torchcodec\]"
    ):
        Frames(FramesParams(decoder="torchcodec")).require()


def test_missing_libraries_are_named(monkeypatch, tmp_path):
    package = tmp_path / "torchcodec"
    package.mkdir()
    (package / "__init__.py").write_text("")
    words = "Could not load libtorchcodec.\\nOSError: libavutil.so.60: cannot open shared object file"
    (package / "decoders.py").write_text(f'raise RuntimeError("{words}")')
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(video, "version", lambda name: "1")
    with pytest.raises(
        UserError, match=r"cannot be loaded: no libavutil\.so\.60 here; it needs the shared libraries"
    ):
        video.require_decoder("torchcodec")


@needs_torchcodec
def test_its_frames_and_times_are_those_of_decord_within_a_few_grey_levels(rendered):
    path = rendered / "clip00.mp4"
    for one, other in zip(video.decode(path, "torchcodec", 7), video.decode(path, "decord", 7), strict=True):
        assert one[0].dtype == np.uint8 and one[0].shape == other[0].shape
        assert np.abs(one[0].astype(int) - other[0]).mean() < 3
        np.testing.assert_allclose(one[1], other[1], atol=1e-3)


@needs_torchcodec
def test_a_file_that_is_no_video_is_an_error_of_its_item(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ItemError):
        list(video.decode(tmp_path / "noise.mp4", "torchcodec"))
    with pytest.raises(ItemError):
        list(video.decode(tmp_path / "none.mp4", "torchcodec"))


@needs_torchcodec
def test_a_pass_asks_the_chosen_decoder_first(rendered):
    reader = Keyframes(KeyframesParams(decoder="torchcodec", size=32))
    reader.load(WorkOptions())
    unit = Unit("a", "a", files={"compress": rendered / "clip00.mp4"})
    results = [
        r for _, r in read_together([Reading(reader, {"a"})], [unit], WorkOptions(), lambda: None) if r
    ]
    assert [output.note for _, output in results] == [{"decoder": "torchcodec"}]
