"""What carried a match, as the report draws it from what an evaluation stored."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from flows.reporting import differences
from flows.results.report.explained import (
    BAR_HEIGHT,
    LEVELS,
    MOST_DRAWN,
    RADIUS,
    Drawing,
    Explanation,
    bar_strip,
    dial,
    drawer_of,
    marked,
    steps,
)
from flows.results.report.pieces import Pieces, located
from trainers.data import SplitIndex
from trainers.gare.config import GareConfig
from trainers.hlformer.config import HLFormerConfig
from trainers.measure.evaluated import EvaluatedFolder
from trainers.registry import METHODS

DRAWN = [name for name in METHODS.names() if METHODS.find(name).drawing]
QUERIES, PLACES = 5, 4
CAPTIONS, ITEMS, RANKED = 300, 30, 9
TEXT = "a red cube <b>meets</b> a ring"
GENERATOR = np.random.default_rng(0)
SHARES = np.broadcast_to(np.array([0.7, 0.3], np.float32), (QUERIES, PLACES, 2))


def drawn(*shape: int) -> np.ndarray:
    return GENERATOR.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)


def said(method: str) -> dict[str, np.ndarray]:
    """What a method might have said of every pair."""
    pairs = QUERIES, PLACES
    words = np.zeros((*pairs, 3, 2, 2), np.int32)
    words[..., 0, 0, :], words[..., 1, 0, :] = (2, 10), (11, 23)
    nodes = drawn(*pairs, 1 + 5 + 3)
    nodes[..., -1] = 0  # two triples of three
    return {
        "hlformer": {
            "clip_scores": drawn(*pairs, 8) - 0.1, "frame_scores": drawn(*pairs, 12) - 0.05,
            "frame_count": np.full(pairs, 10), "shares": SHARES.copy(),
        },
        "lean": {
            "edge_weights": drawn(*pairs, 6), "node_weights": nodes, "words": words,
            "top": np.broadcast_to(np.array([0, 2]), (*pairs, 2)).copy(),
        },
        "gare": {
            "increment": drawn(*pairs), "text": 1 + drawn(*pairs), "frame_increments": drawn(*pairs, 6),
            "pool_weights": drawn(*pairs, 6),
            "real": np.broadcast_to(np.arange(6) < 4, (*pairs, 6)).astype(np.uint8),
        },
        "neighborretr": {"centrality": drawn(*pairs)},
        "h2arn": {
            "text_weights": drawn(*pairs, 7), "cloud_weights": drawn(*pairs, 100),
            "angle": np.full(pairs, 0.4, np.float32), "aperture": np.full(pairs, 0.5, np.float32),
        },
    }[method]  # fmt: skip


Stored = Callable[..., Explanation]


@pytest.fixture
def stored(evaluated_from: Callable[..., EvaluatedFolder], tmp_path: Path) -> Stored:
    """`stored(method, arrays)` evaluates a method that says these arrays of its matches, and reads what was stored.

    Of CAPTIONS captions every second one is explained. Results p of the explained caption number r are the items
    (r + p) % RANKED; the first ten hold some of the items from RANKED on too, and never the last one.
    """
    gallery = [f"v{place}" for place in range(ITEMS)]
    row = np.arange(CAPTIONS) // 2
    results = (row[:, None] + np.arange(PLACES)) % RANKED
    scores = np.full((CAPTIONS, ITEMS), -1.0)
    scores[:, RANKED:] = -np.arange(ITEMS - RANKED) / ITEMS
    np.put_along_axis(scores, results, 10.0 - np.arange(PLACES), axis=1)
    captions = [f"c{place}" for place in range(CAPTIONS)]
    index = SplitIndex(
        gallery,
        list(range(ITEMS)),
        captions,
        list(range(CAPTIONS)),
        results[:, -1].tolist(),
        [TEXT] * CAPTIONS,
    )

    def store(method: str, arrays: dict[str, np.ndarray] | None) -> Explanation:
        def of_match(caption: int, item: int) -> dict[str, np.ndarray]:
            place = results[caption].tolist().index(item)
            return {name: values[row[caption] % QUERIES, place] for name, values in (arrays or {}).items()}

        folder = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}"
        told = of_match if arrays is not None else None
        return Explanation.read(method, evaluated_from(folder, scores, index, ("t2v",), said=told))

    return store


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", path)]


@pytest.mark.parametrize("method", DRAWN)
def test_every_method_draws_explained_results_and_no_others(
    stored: Stored, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation = stored(method, said(method))
    assert explanation.legend.endswith(".") and explanation.queries is not None
    drawing = explanation.drawn(4, 3, TEXT, 12.0)
    assert isinstance(drawing, Drawing) and drawing.sentence.endswith(".")
    assert drawing.timeline or drawing.words or drawing.strips or drawing.gauges
    if method != "neighborretr":  # which knows of every item in how many top places it stands
        assert explanation.drawn(3, 3, TEXT, 12.0) is None  # a query that was not explained
        assert explanation.drawn(4, 8, TEXT, 12.0) is None  # an item that was not
    monkeypatch.setattr(METHODS.find(method), "drawing", "")
    assert stored(method, said(method)).legend == ""  # of a method that declares no drawing


@pytest.mark.parametrize("method", [m for m in DRAWN if drawer_of(m).needs])
def test_where_the_file_or_a_name_is_missing_nothing_is_drawn(stored: Stored, method: str) -> None:
    nothing = stored(method, None)
    assert nothing.legend == "" and nothing.queries is None and nothing.drawn(4, 3, TEXT, 1.0) is None
    arrays = said(method)
    arrays.pop(sorted(drawer_of(method).needs)[0])
    lacking = stored(method, arrays)
    assert lacking.legend == "" and lacking.queries is None and lacking.drawn(4, 3, TEXT, 1.0) is None


def test_the_page_stays_small_however_many_results_there_are(stored: Stored) -> None:
    explanation = stored("h2arn", said("h2arn"))
    count = sum(explanation.drawn(4, 3, TEXT, 1.0) is not None for _ in range(2 * MOST_DRAWN))
    assert count == MOST_DRAWN


def test_timeline_marks_the_best_clip_in_seconds_and_leaves_out_what_is_no_frame(stored: Stored) -> None:
    arrays = said("hlformer")
    arrays["clip_scores"][2, 1], arrays["frame_scores"][2, 1, 10:] = 0.0, 99.0
    arrays["clip_scores"][2, 1, 6] = 0.9
    drawing = stored("hlformer", arrays).drawn(4, 3, TEXT, 16.0)
    assert drawing is not None and drawing.timeline is not None
    assert (drawing.timeline.left, drawing.timeline.width) == (75.0, 12.5)
    assert "Best clip 0.900 at 12.0–14.0 s" in drawing.sentence and drawing.timeline.last == "16.0 s"
    assert len(drawing.timeline.frames.split()) == 10 and "count" in drawing.sentence
    unknown = stored("hlformer", arrays).drawn(4, 3, TEXT, 0.0)
    assert unknown is not None and "at 75–88 %" in unknown.sentence


def test_neighbourhood_is_reported_without_a_stored_explanation_and_centrality_only_with_one(
    stored: Stored,
) -> None:
    plain = stored("neighborretr", None)
    drawing = plain.drawn(0, ITEMS - 1, TEXT, 0.0)
    assert drawing is not None and drawing.sentence.startswith(
        "This is an anti-hub: among the first 10 of 0 queries"
    )
    assert [one.title for one in drawing.gauges] == [
        "Among the first 10"
    ] and "centrality" not in plain.legend
    full = stored("neighborretr", said("neighborretr"))
    both = full.drawn(4, 3, TEXT, 0.0)
    assert both is not None and len(both.gauges) == 2 and "centrality" in full.legend
    assert all(0 <= one.value <= 100 and 0 <= one.mean <= 100 for one in both.gauges)


def test_marked_words_are_the_caption_and_stronger_where_parts_overlap() -> None:
    parts = [(np.array([[2, 10], [0, 0]]), 0.25), (np.array([[6, 10], [24, 30]]), 0.5)]
    words = marked(TEXT, parts)
    assert "".join(word.text for word in words) == TEXT
    assert {word.text: word.level for word in words if word.level} == {
        "red ": 2,
        "cube": LEVELS,
        TEXT[24:30]: 3,
    }
    assert {word.weight for word in words if word.level} == {"25 %", "75 %", "50 %"}
    assert [word.level for word in marked(TEXT, [])] == [0] and marked("", []) == ()
    twice = marked(TEXT, [(spans, 2 * weight) for spans, weight in parts])
    assert [word.level for word in twice] == [word.level for word in words]


def test_triples_of_the_whole_sentence_and_missing_ones_mark_nothing(stored: Stored) -> None:
    arrays = said("lean")
    arrays["words"][:] = 0
    drawing = stored("lean", arrays).drawn(4, 3, TEXT, 1.0)
    assert drawing is not None and [word.text for word in drawing.words] == [TEXT]
    assert "the sentence" in drawing.sentence


def test_bars_fill_the_width_and_the_greatest_is_as_high_as_the_picture() -> None:
    values = np.array([0.1, 0.4, 0.2])
    strip = bar_strip("Frames", values, {1}, 0.4, ("first", "last"))
    left, _, high, width, floor = numbers(strip.strong)
    assert -high == floor == BAR_HEIGHT and left > 100 / 3 and left + width < 200 / 3
    assert strip.plain.count("M") == 2 and strip.label == "Frames, in order: 0.1, 0.4, 0.2"
    assert "of 100 is number 100" in bar_strip("Tokens", np.arange(100), set(), 99, ("", "")).label


def test_steps_go_over_the_whole_width_and_close_on_the_floor() -> None:
    found = steps([1.0, 2.0, 3.0, 4.0], 9.0)
    assert found.startswith("M0 9.0L0 1.0H25") and found.endswith("H100L100 9.0Z") and found.count("H") == 4


def test_pieces_of_a_caption_are_found_one_after_the_other_and_strange_ones_are_left_out() -> None:
    found = located("A cone by a cone &amp; more", ["a", "cone", "by", "a", "cone", "&", "&", "more"])
    assert [tuple(row) for row in found.tolist()] == [
        (0, 1), (2, 6), (7, 9), (10, 11), (12, 16), (17, 18), (0, 0), (23, 27),
    ]  # fmt: skip
    assert located("", []).shape == (0, 2)


@pytest.mark.slow
def test_words_of_a_caption_are_marked_by_their_tokens_and_padding_has_its_share(stored: Stored) -> None:
    even = np.full((QUERIES, PLACES, 9), 1 / 9, np.float32)
    explanation = stored("h2arn", said("h2arn") | {"text_weights": even})
    with closing(Pieces()) as pieces:
        explanation.pieces = pieces
        drawing = explanation.drawn(4, 3, "a red cube", 0.0)
        cut = pieces.spans("a red cube", 4)
    assert cut is not None and cut.tolist() == [[0, 1], [2, 5]]
    assert drawing is not None
    assert [word.text for word in drawing.words if word.level == LEVELS] == ["a", "red", "cube"]
    assert "words make 33 %, start and end token 22 %, padding 44 %" in drawing.sentence


@pytest.mark.parametrize(
    ("angle", "aperture", "inside"), [(0.3, 0.5, True), (0.5, 0.3, False), (3.0, 0.1, False)]
)
def test_dial_has_the_cloud_inside_exactly_where_its_angle_is_the_smaller(
    angle: float, aperture: float, inside: bool
) -> None:
    seen = dial(angle, aperture)
    assert seen.inside == inside and ("inside" in seen.label) == inside
    assert np.hypot(*seen.ray) == pytest.approx(RADIUS, abs=0.1)
    assert np.arctan2(-seen.ray[1], seen.ray[0]) == pytest.approx(angle, abs=0.01)
    _, _, x, y, *_ = numbers(seen.slice)
    assert np.arctan2(y, x) == pytest.approx(aperture, abs=0.01)


def test_differences_are_the_settings_that_are_not_those_of_the_preset() -> None:
    assert differences(GareConfig()) == [] == differences(HLFormerConfig(preset="act"))
    (lr,) = differences(GareConfig(lr=3e-5))
    assert lr == {"setting": "lr", "here": 3e-5, "published": 1e-4}
    changed = {row["setting"] for row in differences(HLFormerConfig(preset="act", epochs=3, map_size=8))}
    assert changed == {"epochs", "map_size"}
