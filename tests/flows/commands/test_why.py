"""`why` says hit, miss, failed or left out, and of a miss which component of the fingerprint differs."""

from __future__ import annotations

import pytest

from flows.project import Project, open_project
from flows.why import explain
from pipeline.errors import UserError
from trainers.hlformer.declaration import HLFORMER


@pytest.fixture
def why(made):
    """What is said of a stage and item under some settings."""
    opened: list[Project] = []

    def ask(stage: str, item: str = "clip03", *sets: str) -> str:
        opened.append(open_project(made.toml, sets))
        return "\n".join(explain(opened[-1], stage, item))

    yield ask
    for project in opened:
        project.store.index.close()


def test_a_hit_names_the_fingerprint_and_its_components(why):
    told = why("clip")
    assert told.startswith("clip of clip03: hit, fingerprint ")
    for component in ("version: 1", "params: ", "weights: seed:0", "decoder: decord", "needs compress: "):
        assert component in told
    assert why("train-hlformer", "anything").startswith("train-hlformer: hit")


def test_a_miss_names_the_setting_that_differs_now_and_then(why):
    told = why("clip", "clip03", "extractors.clip.dtype=float32")
    assert "clip of clip03: miss" in told and "params.dtype: 'float32' now, 'float16' then" in told
    assert "crf" not in told and "compress, upstream" not in told


def test_a_miss_names_what_differs_upstream_however_far(why):
    told = why("evaluate-hlformer", "", "extractors.compress.crf=30")
    for stage in ("train-hlformer", "pack-hlformer", "clip", "compress"):
        assert f"{stage}, upstream, which differs in" in told
    assert "params.crf: 30 now, 23 then" in told
    assert "it waits for " in told


def test_a_raised_version_of_a_method_makes_its_three_stages_again_and_nothing_else(why, made, monkeypatch):
    def missing() -> set[str]:
        project = open_project(made.toml)
        try:
            return {name for name, state in project.survey().items() if state.missing}
        finally:
            project.store.index.close()

    before = missing()  # the report alone: nobody asked for it
    version = HLFORMER.version
    monkeypatch.setattr(HLFORMER, "version", version + 1)
    own = {"pack-hlformer", "pack-hlformer-test", "train-hlformer", "evaluate-hlformer"}
    assert missing() == before | own
    assert f"method_version: {version + 1} now, {version} then" in why("train-hlformer")
    monkeypatch.setattr(HLFORMER, "version", 1)  # which says nothing of itself in a fingerprint
    assert f"method_version: 1 now, {version} then" in why("pack-hlformer")


@pytest.mark.slow
def test_of_several_the_nearest_is_reported(why, made):
    assert made.run("stage", "compress", made.toml, "--set", "extractors.compress.crf=30").code == 0
    sets = ("extractors.compress.crf=31", "extractors.compress.fps=5")
    assert "params.fps" in why("compress", "clip03", *sets)
    told = why("compress", "clip03", "extractors.compress.crf=30", "extractors.compress.fps=5")
    assert "params.fps: 5.0 now, 3.0 then" in told and "crf" not in told


def test_an_item_is_named_by_id_or_file_and_a_caption_by_id_or_text(why):
    assert why("clip", "clip03.mp4") == why("clip", "clip03")
    assert why("clip_text", "clip03.mp4#1") == why("clip_text", "clip 3 seen 1 times")
    assert "clip_text of clip03.mp4#1: hit" in why("clip_text", "clip03.mp4#1")


@pytest.mark.parametrize(
    ("stage", "item", "nearest"), [("clip", "clip3", "clip03"), ("clip_text", "clip03.mp4#7", "clip03.mp4#")]
)
def test_an_unknown_name_is_one_sentence_with_the_nearest(why, stage, item, nearest):
    with pytest.raises(UserError, match=f"no item '{item}' among the .* did you mean '{nearest}"):
        why(stage, item)


def test_what_was_made_and_is_gone_is_reported_as_such(why, made):
    next((made.store / "files/compress").rglob("*.mp4")).unlink()
    told = [why("compress", f"clip{n:02}") for n in range(12)]
    gone = [text for text in told if "miss" in text]
    assert len(gone) == 1 and "it was made, but its segment or file is gone or was cut short" in gone[0]


def test_a_failure_and_what_it_keeps_from_being_made_have_the_reason(why, made):
    (made.folder / "clip03.mp4").write_bytes(b"no video")
    assert made.run("stage", "clip", made.toml).code == 3
    told = why("compress")
    assert told.startswith("compress of clip03: failed 1 times: it is a text ('no video'), not a video")
    assert "clip of clip03: left out" in why("clip") and "it is a text ('no video'), not a video" in why(
        "clip"
    )


def test_media_that_cannot_be_read_are_one_sentence(why, made):
    (made.folder / "clip03.mp4").unlink()
    with pytest.raises(UserError, match=r"clip03: the media file .*clip03\.mp4 does not exist"):
        why("clip")


def test_a_stage_that_never_ran_was_never_made(why):
    assert "report: miss" in why("report") and "it was never made in this store" in why("report")
