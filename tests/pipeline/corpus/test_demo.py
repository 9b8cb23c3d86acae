"""The demo corpus: the same from its seed, without leaks, and each caption true of its moment."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.corpus.importers.demo import drawing, grammar, scenes
from pipeline.corpus.importers.demo.corpus import render
from pipeline.errors import UserError

ITEMS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("demo"), items=ITEMS).parent


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_another_folder(folder: Path, tmp_path: Path) -> None:
    render(tmp_path, items=ITEMS)
    assert digests(tmp_path) == digests(folder)


def test_another_seed_gives_other_scenes_and_captions() -> None:
    assert scenes.draw(3, seed=0) != scenes.draw(3, seed=1)


def test_a_larger_corpus_begins_with_the_scenes_of_a_smaller_one() -> None:
    assert scenes.draw(40, seed=0)[:15] == scenes.draw(15, seed=0)


def test_no_two_videos_share_a_moment() -> None:
    """Recounted without the dataclasses' own equality: action and who does it to whom, in words."""
    keys = [
        (m.action, m.actor.colour, m.actor.shape, m.other and (m.other.colour, m.other.shape))
        for scene in scenes.draw(150, seed=0)
        for m in scene.moments
    ]
    assert len(set(keys)) == len(keys)


def test_size_place_and_length_do_not_make_a_moment_another_one() -> None:
    moment = scenes.draw(1, seed=0)[0].moments[0]
    larger = replace(moment.actor, large=not moment.actor.large)
    assert (
        replace(moment, actor=larger, shift=(0.1, 0.1), start=moment.start + 1, end=moment.end + 2) == moment
    )


def test_the_default_corpus_has_enough_of_every_split(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipeline.corpus.importers.demo.corpus._encode", lambda scene, path, ffmpeg: None)
    items = [json.loads(line) for line in render(tmp_path).read_text().splitlines()]
    videos = Counter(item["split"] for item in items)
    queries = Counter(item["split"] for item in items for _ in item["captions"])
    assert len(items) == 150 and videos["train"] >= 90 and videos["val"] >= 15 and videos["test"] >= 30
    assert queries["test"] >= 200
    assert {len(item["captions"]) for item in items} == {8, 10}


def test_two_captions_a_moment_follow_one_another_from_start_to_end_of_the_video(folder: Path) -> None:
    for row in rows(folder):
        first, second = row["captions"][::2], row["captions"][1::2]
        for one, other in zip(first, second, strict=True):
            assert (one["start"], one["end"]) == (other["start"], other["end"]) and one["text"] != other[
                "text"
            ]
        assert first[0]["start"] == 0
        assert all(a["end"] == b["start"] for a, b in pairwise(first))
        assert all(3 <= c["end"] - c["start"] <= 4 for c in first)
        with av.open(str(folder / row["media"])) as video:
            stream = video.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height) == (drawing.WIDTH_PIXELS, drawing.HEIGHT_PIXELS)
            count = sum(1 for _ in video.decode(stream))
        assert count == round(first[-1]["end"] * drawing.FPS)


def test_manifest_ids_are_unique_and_every_split_has_items(folder: Path) -> None:
    items = rows(folder)
    ids = [item["id"] for item in items] + [caption["id"] for item in items for caption in item["captions"]]
    assert len(set(ids)) == len(ids)
    assert {item["split"] for item in items} == {"train", "val", "test"}
    assert {item["kind"] for item in items} == {"video"}


def test_a_video_that_is_there_is_not_drawn_again_and_a_missing_one_is(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    kept, lost = (tmp_path / row["media"] for row in rows(tmp_path)[:2])
    before = kept.stat().st_mtime_ns
    lost.unlink()
    seen: list[tuple[int, int]] = []
    render(tmp_path, items=ITEMS, progress=lambda done, of: seen.append((done, of)))
    assert kept.stat().st_mtime_ns == before
    assert digests(tmp_path) == digests(folder)
    assert seen == [(ITEMS, ITEMS)]


def test_an_interrupted_encoding_leaves_no_video_that_counts_as_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipeline.corpus.importers.demo.corpus.find_ffmpeg", lambda: "false")
    with pytest.raises(UserError, match="ffmpeg could not write"):
        render(tmp_path, items=ITEMS)
    assert not list(tmp_path.rglob("*.mp4")) and not (tmp_path / "corpus.jsonl").exists()


@pytest.mark.parametrize("items", [0, 8, 3001])
def test_a_number_of_items_that_the_demo_cannot_have_is_refused(items: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"items = {items} is not possible: the demo has 9 to 3000 items"):
        render(tmp_path, items=items)


def test_every_caption_names_colour_and_shape_and_a_verb_of_its_action() -> None:
    for index, scene in enumerate(scenes.draw(60, seed=3)):
        for moment in scene.moments:
            text = grammar.caption(moment, scene, random.Random(index))
            for actor in filter(None, (moment.actor, moment.other)):
                assert any(word in text for word in grammar.COLOUR_WORDS[actor.colour])
                assert any(word in text for word in grammar.SHAPE_WORDS[actor.shape])
            verbs = [verb.partition(" {other}")[0] for pair in grammar.VERBS[moment.action] for verb in pair]
            assert any(verb in text for verb in verbs)
            assert "{" not in text and len(text.split()) <= 24


def test_every_action_has_words_and_a_movement() -> None:
    assert set(grammar.VERBS) == {*scenes.SOLO_ACTIONS, *scenes.PAIR_ACTIONS}
    assert set(drawing.SOLO) == set(scenes.SOLO_ACTIONS) and set(drawing.PAIR) == set(scenes.PAIR_ACTIONS)


def test_one_moment_can_be_said_in_many_ways() -> None:
    scene = scenes.draw(1, seed=0)[0]
    texts = {grammar.caption(scene.moments[0], scene, random.Random(n)) for n in range(300)}
    assert len(texts) > 60


def picture(moment: scenes.Moment, index: int) -> np.ndarray:
    frames = list(drawing.frames(scenes.Scene("black", "plain", (moment,))))
    return np.frombuffer(frames[index], np.uint8).reshape(drawing.HEIGHT_PIXELS, drawing.WIDTH_PIXELS, 3)


def centre(moment: scenes.Moment, index: int) -> np.ndarray:
    """Row and column of the middle of all that is not background."""
    return np.argwhere(picture(moment, index).max(axis=-1) > 100).mean(axis=0)


def solo(action: str) -> scenes.Moment:
    actor = scenes.Actor("white", "square", large=False)
    return scenes.Moment(action, actor, None, 0.0, 3.0, (0.0, 0.0), None)


def test_what_moves_moves_the_way_the_words_say() -> None:
    for action, axis, sign in (("left", 1, -1), ("right", 1, 1), ("rise", 0, -1), ("fall", 0, 1)):
        way = centre(solo(action), -1) - centre(solo(action), 0)
        assert np.sign(way[axis]) == sign and abs(way[axis]) > 50 and abs(way[1 - axis]) < 2


def test_growing_covers_more_pixels_shrinking_fewer_and_staying_the_same() -> None:
    def covered(action: str, index: int) -> int:
        return int((picture(solo(action), index).max(axis=-1) > 100).sum())

    assert covered("grow", -1) > 4 * covered("grow", 0)
    assert covered("shrink", 0) > 4 * covered("shrink", -1)
    assert covered("stay", 0) == covered("stay", -1) > 0


def test_passing_behind_is_hidden_and_passing_in_front_hides() -> None:
    actor, other = scenes.Actor("red", "square", large=False), scenes.Actor("blue", "circle", large=True)
    middle = (drawing.HEIGHT_PIXELS // 2, drawing.WIDTH_PIXELS // 2)
    for action, seen in (("behind", "blue"), ("front", "red")):
        moment = scenes.Moment(action, actor, other, 0.0, 3.0, (0.0, 0.0), None)
        assert tuple(picture(moment, 18)[middle]) == drawing.RGB[seen]
