"""The stage `clip`: each frame's vector as the backbone gives it, under a fingerprint of all that decides it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from extractors.backbones.clip import ClipBackbone
from extractors.base import Output, Unit, WorkOptions
from extractors.clip import Clip, ClipParams
from extractors.one_pass import Reading, read_together
from pipeline.corpus.contents import RememberedDigests
from pipeline.errors import ItemError, UserError
from pipeline.media import video
from pipeline.store.index import Index

DEMO = {"model": "crossreel-demo", "weights": "seed:0"}


@pytest.fixture
def known(tmp_path) -> RememberedDigests:
    return RememberedDigests(Index(tmp_path / "index.sqlite"))


@pytest.fixture(scope="module")
def extractor():
    made = Clip(ClipParams(**DEMO, dtype="float32"))
    made.load(WorkOptions(device="cpu", batch_size=16))
    return made


def features(extractor: Clip, folder: Path, *names: str) -> dict[str, Output | ItemError]:
    units = [Unit(name, name, files={"compress": folder / name}) for name in names]
    readings = [Reading(extractor, {unit.key for unit in units})]
    results = read_together(readings, units, extractor.options, lambda: None)
    return {result[0].key: result[1] for _, result in results if result}


def test_each_frame_has_the_backbone_s_vector_and_its_time(extractor, rendered):
    network = ClipBackbone(DEMO["model"], DEMO["weights"])
    found = features(extractor, rendered, "clip00.mp4", "clip05.mp4")
    for name, output in found.items():
        assert isinstance(output, Output)
        frames = np.concatenate([f for f, _ in video.decode(rendered / name, "decord")])
        np.testing.assert_allclose(output.arrays["frame"], network.image_features(frames), atol=1e-4)
        np.testing.assert_allclose(output.arrays["time"], np.arange(50) / 25, atol=1e-3)
        assert all(field.fits(output.arrays[key].shape) for key, field in extractor.fields.items())


def test_frames_of_every_size_share_a_batch(extractor, rendered, tmp_path, clip_of):
    clip_of(tmp_path / "tall.mp4", 0.4, "60x150")
    (tmp_path / "clip00.mp4").write_bytes((rendered / "clip00.mp4").read_bytes())
    found = features(extractor, tmp_path, "tall.mp4", "clip00.mp4")
    assert [len(found[name].arrays["frame"]) for name in ("tall.mp4", "clip00.mp4")] == [10, 50]


def test_a_video_that_cannot_be_decoded_is_an_item_error(extractor, rendered, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "clip00.mp4").write_bytes((rendered / "clip00.mp4").read_bytes())
    found = features(extractor, tmp_path, "text.mp4", "clip00.mp4")
    assert isinstance(found["text.mp4"], ItemError) and isinstance(found["clip00.mp4"], Output)


def test_the_stored_type_is_a_setting():
    assert Clip(ClipParams(**DEMO)).fields["frame"].dtype == "float16"
    assert Clip(ClipParams(**DEMO, dtype="float32")).fields["frame"].dtype == "float32"
    assert Clip(ClipParams(**DEMO)).decisive() != Clip(ClipParams(**DEMO, dtype="float32")).decisive()


def test_other_weights_and_another_decoder_are_another_identity(known, monkeypatch):
    one = Clip(ClipParams(**DEMO)).identity(known)
    assert Clip(ClipParams(model=DEMO["model"], weights="seed:1")).identity(known) != one
    monkeypatch.setattr(video, "decoder_identity", lambda decoder="decord": "another")
    assert Clip(ClipParams(**DEMO)).identity(known) != one


def test_what_is_not_there_is_one_sentence(known):
    with pytest.raises(UserError, match=r"unknown CLIP model 'ViT-B-23'; did you mean"):
        Clip(ClipParams(model="ViT-B-23")).identity(known)
    with pytest.raises(UserError, match=r"no weights file no/such\.pt"):
        Clip(ClipParams(weights="no/such.pt")).identity(known)


def test_patch_states_stand_beside_the_vectors_they_are_pooled_to(extractor, rendered):
    made = Clip(ClipParams(**DEMO, dtype="float32", patches=True))
    made.load(WorkOptions(device="cpu", batch_size=16))
    arrays = features(made, rendered, "clip00.mp4")["clip00.mp4"].arrays
    assert arrays["patch"].ndim == 3 and len(arrays["patch"]) == 50
    plain = features(extractor, rendered, "clip00.mp4")["clip00.mp4"].arrays
    np.testing.assert_allclose(arrays["frame"], plain["frame"], atol=1e-4)
    assert "patch" in made.fields and "patch" not in extractor.fields


def test_a_network_without_patches_says_so(rendered):
    network = ClipBackbone("RN50", "seed:0")
    with pytest.raises(UserError, match="RN50 has no patch states: its image tower is a ModifiedResNet"):
        network.crop_tokens(np.zeros((1, 3, 224, 224), np.uint8))


def test_half_precision_gives_nearly_the_same_vectors(extractor, rendered):
    made = Clip(ClipParams(**DEMO, dtype="float32", precision="bf16"))
    made.load(WorkOptions(device="cpu", batch_size=16))
    one, other = (
        features(e, rendered, "clip00.mp4")["clip00.mp4"].arrays["frame"] for e in (made, extractor)
    )
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() > 0.99 and not np.array_equal(one, other)
