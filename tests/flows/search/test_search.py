"""Searching a trained method: the ranking of its evaluation, new sentences and files, and what cannot be asked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from flows.applying import apply_run
from flows.cli import app as command
from flows.commands.search import search
from flows.console import StageDisplay
from flows.project import Project, open_project
from flows.results.method_results import method_results
from flows.run import run_stages
from flows.search import worker
from flows.search.briefing import SearchBriefing
from flows.search.index import with_index
from flows.search.query import MOST_CHARACTERS, require_text
from flows.search.searcher import Searcher
from flows.trained.finished import usual_run
from pipeline.child import ChildDied
from pipeline.corpus.importers.demo.clouds import scan
from pipeline.corpus.manifest import Caption, Corpus, Item, write_manifest
from pipeline.errors import ItemError, UserError
from trainers.measure.evaluated import Queries, Ranking

NEW = "a red square that nobody described"
EXPERIMENTS = Path(__file__).parents[2] / "fixtures/experiments"
ALL = f"""
corpus = "corpus.jsonl"
store = "store"
methods = ["neighborretr", "gare", "lean", "clip4clip"]

{(EXPERIMENTS / "demo_networks.toml").read_text()}
[trainers.neighborretr]
mode = "frozen"
max_frames = 3
max_words = 12
temporal_layers = 1
num_neighbors = 2
bank_size = 12
batch_size = 8
epochs = 1

[trainers.gare]
mode = "finetune"
base_encoder = "crossreel-demo"
backbone_weights = "seed:0"
max_frames = 2
num_hidden_layers = 1
batch_size = 4
epochs = 1

[trainers.clip4clip]
mode = "frozen"
max_frames = 3
max_words = 12
sim_header = "meanP"
epochs = 0

[trainers.lean]
hidden = 16
latent = 16
attention_hidden = 8
epochs = 1

[run]
workers = 1
"""
CLOUDS = (EXPERIMENTS / "clouds.toml").read_text()

IMPORTED = (EXPERIMENTS / "mssl_tiny.toml").read_text()
TINY = Path(__file__).parents[2] / "fixtures/hlformer/mssl_tiny/tiny"

pytestmark = pytest.mark.usefixtures("forked")

Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment of a lab in which everything up to the evaluation was made."""
    folder = tmp_path_factory.mktemp("search")
    shutil.copytree(made_once, folder, dirs_exist_ok=True)
    return folder / "experiment.toml"


@pytest.fixture(scope="module")
def searcher(place: Path) -> Iterator[Searcher]:
    with Searcher(open_project(place), "hlformer") as found:
        yield found


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Verb:
    """`crossreel search` as the command line calls it: status, standard output, standard error."""
    app = typer.Typer()
    app.command()(search)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["search", *map(str, arguments)])
        code: Any = 0
        try:
            app()
        except SystemExit as end:
            code = end.code or 0
        except (UserError, ItemError) as error:  # which the command's entry turns into this
            return 2, "", str(error)
        captured = capsys.readouterr()
        return int(code), captured.out, captured.err

    return call


def evaluated(project: Project, method: str) -> tuple[Queries, Ranking]:
    """What the evaluation stored: who asked, and the ranking."""
    folder = method_results(project, method).evaluated
    return folder.queries, folder.ranking


def trained(folder: Path, text: str) -> Project:
    """An experiment in a folder that has its corpus, run up to the evaluation."""
    (folder / "experiment.toml").write_text(text, encoding="utf-8")
    project = open_project(folder / "experiment.toml")
    names = [name for name in project.stages if name.startswith("evaluate-")]
    run_stages(project, names, StageDisplay(quiet=True))
    return project


def require_that_it_applies(project: Project, method: str) -> None:
    """A run on its own test split measures what its evaluation measured; on the train split it ranks others."""
    run, manifest = usual_run(project, method), project.contents.corpus.path
    own = method_results(project, method).evaluated.metrics
    same = apply_run(project, run, manifest, "test", StageDisplay(quiet=True))
    assert same.evaluated.metrics.estimates == own.estimates and same.evaluated.metrics.protocol.applied
    assert {r.stage: r.ran for r in same.result.reports if r.stage in project.stages and r.ran} == {}
    other = apply_run(project, run, manifest, "train", StageDisplay(quiet=True))
    items = {item.id for item in project.contents.corpus.gallery("train")}
    assert other.gallery.learned == len(items) == other.evaluated.metrics.protocol.items
    with Searcher(other.searched) as searcher:
        assert {hit.item for hit in searcher.search(NEW, top=len(items))} == items


def anew(searcher: Searcher, text: str) -> dict[str, Any]:
    """What the process finds for a text whose stored features it is not told of."""
    replies: list[dict[str, Any]] = []
    request = {"ask": "search", "about": searcher._about, "key": "a" * 32, "text": text, "top": 10}
    worker.serve(request, lambda header, arrays: replies.append(dict(arrays)))
    return replies[-1]


def require_the_evaluation_s_ranking(project: Project, method: str) -> None:
    """Every caption finds what its evaluation found: by its text, by its id, and encoded anew."""
    asked, ranking = evaluated(project, method)
    ids = {key: caption.id for key, caption in project.contents.captions().items()}
    with Searcher(project, method) as searcher:
        for q, text in enumerate(asked.texts):
            wanted = [asked.items[position] for position in ranking.top_items[q]]
            hits = searcher.search(text)
            assert [hit.key for hit in hits] == wanted
            assert [hit.place for hit in hits] == list(range(1, len(wanted) + 1))
            assert np.allclose([hit.score for hit in hits], ranking.top_scores[q], atol=1e-5)
            assert searcher.search_caption(ids[asked.captions[q]]) == hits
            found = anew(searcher, text)
            assert np.allclose(found["score"], ranking.top_scores[q], rtol=1e-3, atol=1e-3)
            assert found["position"].tolist() == ranking.top_items[q].tolist()


def require_that_lists_are_encoded_as_singles(project: Project, method: str, files: list[Path]) -> None:
    """New sentences and files in one list have the scores that each pair has by itself."""
    texts = [NEW, "a dog", "a red bar moves over a grey field and then a blue one"]
    with Searcher(project, method) as searcher:
        together = searcher.scores(texts, files)
        singles = [[searcher.scores([text], [file]).item() for file in files] for text in texts]
        np.testing.assert_allclose(together, singles, rtol=1e-3, atol=1e-3)
        assert together.shape == (3, len(files)) and len(np.unique(together)) > 1
        encoded = searcher.encode_items(files), searcher.encode_texts(texts)
        assert [{len(values) for values in arrays.values()} for arrays in encoded] == [{len(files)}, {3}]


def test_a_caption_finds_what_its_evaluation_found(place):
    require_the_evaluation_s_ranking(open_project(place), "hlformer")


def test_the_right_item_has_the_place_that_its_evaluation_gave_it_and_windows_cut_one_ranking(
    place, searcher
):
    asked, ranking = evaluated(open_project(place), "hlformer")
    for row, text in enumerate(asked.texts):
        whole = searcher.rank(text, top=10)
        (right,) = whole.right
        assert right.key == asked.items[asked.caption_item[row]]
        assert right.place == ranking.ranks["t2v"].strict[row]
        part = searcher.rank(text, top=1, first=2, item=whole.hits[-1].key)
        assert part.hits == whole.hits[1:2] and part.asked == whole.hits[-1] and part.right == whole.right
        assert part.following == pytest.approx(whole.hits[2].score) and whole.following is None
        scores = [hit.score for hit in whole.hits]
        assert sum(whole.scale.counts) == whole.gallery == len(scores)
        assert (whole.scale.low, whole.scale.high) == pytest.approx((min(scores), max(scores)))
        assert whole.scale.median == pytest.approx(np.median(scores))
    assert searcher.rank(NEW).right == ()
    with pytest.raises(UserError, match="no item of the split 'test' has the id or digest 'none'"):
        searcher.rank(NEW, item="none")


def test_a_gallery_is_calibrated_by_captions_of_the_training_split(searcher):
    found = searcher.calibrate()
    queries = {
        caption.digest: caption.text for _, _, caption in searcher.searched.project.contents.queries("train")
    }
    assert found.split == "train" and found.scores.shape == (len(queries), len(searcher.item_keys))
    expected = searcher.scores([*queries.values()], searcher.item_keys)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.best, np.sort(expected.max(1)), rtol=1e-3, atol=1e-3)


def test_without_training_captions_those_of_other_items_calibrate(searcher, monkeypatch):
    monkeypatch.setattr(SearchBriefing, "sample", lambda briefing, split, most: None)
    found = searcher.calibrate()
    texts = [caption.text for _, _, caption in searcher.searched.project.contents.queries("test")]
    scores = searcher.scores(texts, searcher.item_keys).copy()
    for row, text in enumerate(texts):
        for hit in searcher.rank(text, 1).right:
            scores[row, searcher.item_keys.index(hit.key)] = -np.inf
    assert found.split == "test"
    np.testing.assert_allclose(found.best, np.sort(scores.max(1)), rtol=1e-3, atol=1e-3)


def test_the_captions_of_an_item_stand_at_their_places_among_all_captions(place, searcher):
    asked, _ = evaluated(open_project(place), "hlformer")
    for number, key in enumerate(asked.items):
        scores = searcher.scores(asked.texts, [key])[:, 0]
        own = [row for row, item in enumerate(asked.caption_item) if item == number]
        expected = sorted(1 + int((scores > scores[row]).sum()) for row in own)
        found = searcher.own_captions(key)
        assert [hit.place for hit in found] == expected and {hit.item_key for hit in found} == {key}


@pytest.mark.slow
@pytest.mark.long
def test_a_caption_finds_what_its_evaluation_found_with_every_other_method_of_videos(
    rendered, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("methods")
    shutil.copytree(rendered, folder, dirs_exist_ok=True)
    splits = ("train", "train", "train", "train", "val", "val", "test", "test")
    names = sorted(path.name for path in folder.glob("*.mp4"))
    scenes = ("a red bar moves over a grey field", "blue squares are turning slowly", "the clock counts up")
    items = [
        Item(name[:-4], split, tuple(Caption(f"{name}#{k}", f"{t} in scene {n}") for k, t in enumerate(scenes)), name)
        for n, (name, split) in enumerate(zip(names, splits, strict=False))
    ]  # fmt: skip
    write_manifest(folder / "corpus.jsonl", items)
    project = trained(folder, ALL)
    for method in ("neighborretr", "gare", "lean", "clip4clip"):
        require_the_evaluation_s_ranking(project, method)
        require_that_it_applies(project, method)
        require_that_lists_are_encoded_as_singles(
            project, method, [folder / "clip10.mp4", folder / "clip11.mp4"]
        )
    with Searcher(project, "lean") as searcher:
        hits = searcher.search("a yellow ball is rolling under the table")
        assert len(hits) == 2 and hits[0].moment is None
        assert "edge_weights" in searcher.explain("a yellow ball is rolling", [hit.key for hit in hits])
        found = searcher.search_media(folder / "clip11.mp4", top=4)  # of no split
        assert len(found) == 4 and found[0].score >= found[3].score


@pytest.mark.slow
@pytest.mark.long
def test_point_clouds_are_searched_in_both_directions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clouds")
    scan(folder, items=16)
    project = trained(folder, CLOUDS)
    require_the_evaluation_s_ranking(project, "h2arn")
    require_that_it_applies(project, "h2arn")
    items = {item.id: item for item in project.contents.corpus.items}
    inside = next(item for item in items.values() if item.split == "test")
    outside = next(item for item in items.values() if item.split == "train")
    others = [item for item in items.values() if item.split == "train"][:2]
    require_that_lists_are_encoded_as_singles(
        project, "h2arn", [project.contents.corpus.media_path(item) for item in others]
    )
    with Searcher(project) as searcher:
        hits = searcher.search("a small red ball beside a blue box", top=3)
        assert {hit.item for hit in hits} <= set(items) and hits[0].moment is None
        for item in (inside, outside):
            media = project.contents.corpus.media_path(item)
            found = searcher.search_media(media, top=3)
            assert len(found) == 3 and {hit.item for hit in found} <= set(items)


def test_a_new_sentence_finds_items_with_their_names_captions_and_moments(searcher, place):
    hits = searcher.search(NEW, top=2)
    assert [hit.place for hit in hits] == [1, 2] and hits[0].score >= hits[1].score
    corpus = {item.id: item for item in Corpus.read(place.with_name("corpus.jsonl")).items}
    for hit in hits:
        assert hit.captions == tuple(caption.text for caption in corpus[hit.item].captions)
        assert hit.moment is not None
        start, end = hit.moment
        assert 0 <= start < end <= 2.5 and end - start == pytest.approx(0.5, abs=0.05)  # four clips of 2 s
    assert searcher.search(f"  {NEW} ", top=2) == hits


def test_an_explanation_has_a_row_an_item_and_tells_the_moment(searcher):
    hits = searcher.search(NEW)
    said = searcher.explain(NEW, [hit.key for hit in reversed(hits)])
    assert said["clip_scores"].shape == (3, 4) and said["frame_scores"].shape == (3, 8)
    for hit, scores in zip(reversed(hits), said["clip_scores"], strict=True):
        assert hit.moment[0] == pytest.approx(scores.argmax() * 0.5, abs=0.05)
    assert searcher.explain(NEW, []) == {}
    with pytest.raises(UserError, match="no item of the split 'test' has the id or digest 'ff'"):
        searcher.explain(NEW, ["ff"])


def test_a_video_finds_captions_and_a_copy_of_a_known_one_finds_what_it_finds(searcher, place, tmp_path):
    known = searcher.search_media(place.with_name("clip03.mp4"))
    assert {hit.item for hit in known} == {"clip03", "clip07", "clip11"} and len(known) == 6
    assert all(hit.text.startswith("clip") and hit.caption.startswith(hit.item) for hit in known)
    copy = shutil.copy(place.with_name("clip03.mp4"), tmp_path / "copy.mp4")
    assert searcher.search_media(copy) == known
    with copy.open("ab") as file:  # other bytes, the same frames: encoded anew
        file.write(b"\0" * 64)
    again = searcher.search_media(copy)
    assert [hit.key for hit in again] == [hit.key for hit in known]
    assert np.allclose([hit.score for hit in again], [hit.score for hit in known], atol=2e-3)
    assert not list(place.with_name("store").glob("work/*/segments"))  # nothing of the queries stays


def test_a_file_that_is_no_video_is_named(searcher, tmp_path):
    broken = tmp_path / "broken.mp4"
    with pytest.raises(UserError, match=r"broken\.mp4 is not a file"):
        searcher.search_media(broken)
    broken.write_bytes(b"no video at all")
    with pytest.raises(ItemError, match=r"broken\.mp4"):
        searcher.search_media(broken)
    assert searcher.search(NEW)  # the process goes on


def test_threads_that_come_and_go_search_with_one_process(searcher):
    expected, pid = searcher.search(NEW), searcher._child.pid
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: searcher.search(NEW), range(16)))
    assert all(hits == expected for hits in found)
    assert searcher._child.pid == pid and searcher.search(NEW) == expected and searcher._child.pid == pid


@pytest.mark.slow
@pytest.mark.long
def test_a_process_that_was_killed_is_started_again(searcher):
    expected, pid = searcher.search(NEW), searcher._child.pid
    os.kill(pid, signal.SIGKILL)
    assert searcher.search(NEW) == expected and searcher._child.pid != pid


def test_a_process_that_dies_again_is_not_started_for_ever(searcher, monkeypatch):
    asked = []

    def dies(request: dict[str, Any]) -> None:
        asked.append(request["ask"])
        raise ChildDied("SIGKILL (out of memory?)")

    monkeypatch.setattr(searcher, "_reply", dies)
    with pytest.raises(ChildDied, match=r"the process that searches died twice: SIGKILL \(out of memory\?\)"):
        searcher.search(NEW)
    assert asked == ["search", "search"]


def test_the_index_is_made_once_and_changes_no_other_stage(place, searcher):
    project, said = open_project(place), []
    (made,) = place.parent.glob("store/runs/index-hlformer/*")
    before = (made / "artifact.json").stat().st_mtime_ns
    with Searcher(project, "hlformer", say=said.append) as again:
        assert again.split == "test"
    assert said == [] and (made / "artifact.json").stat().st_mtime_ns == before
    states = project.survey()
    project.stages = with_index(project.stages, "hlformer", "test")
    more = project.survey()
    assert {name: more[name].fingerprint for name in states} == {n: s.fingerprint for n, s in states.items()}
    assert set(more) - set(states) == {"index-hlformer"} and more["index-hlformer"].complete


@pytest.mark.slow
@pytest.mark.long
def test_other_splits_are_searched_too(place):
    folder = place.parent
    items = list(Corpus.read(folder / "corpus.jsonl").items)
    more = Item("again", "more", (Caption("again#0", "clip 0 seen 0 times"),), "clip00.mp4")
    write_manifest(folder / "more.jsonl", [*items, more])
    project = open_project(place, ['corpus="more.jsonl"'])
    for split, found in (("val", {"clip02", "clip06", "clip10"}), ("more", {"clip00"})):
        with Searcher(project, split=split) as searcher:
            assert {hit.item for hit in searcher.search("clip 0 seen 0 times")} == found
    with pytest.raises(UserError, match=r"the split 'mroe' has no captions.*more"):
        Searcher(project, split="mroe")


@pytest.mark.slow
@pytest.mark.long
def test_imported_features_answer_stored_captions_and_no_new_ones(tmp_path):
    words = ["import", "features", TINY, "--store", tmp_path / "store", "--out", tmp_path / "corpus.jsonl"]
    assert CliRunner().invoke(command, [str(word) for word in words]).exit_code == 0
    project = trained(tmp_path, IMPORTED)
    asked, ranking = evaluated(project, "hlformer")
    caption = next(c for c in project.contents.captions().values() if c.digest == asked.captions[0])
    (tmp_path / "new.mp4").write_bytes(b"anything")
    with Searcher(project) as searcher:
        hits = searcher.search_caption(caption.id)
        assert [hit.key for hit in hits] == [asked.items[place] for place in ranking.top_items[0]]
        assert hits[0].moment is None  # nobody knows how long the videos are
        with pytest.raises(
            UserError, match=r"the text features of hlformer were imported .*cannot be encoded"
        ):
            searcher.search(NEW)
        with pytest.raises(
            UserError, match=r"the item features of hlformer were imported .*cannot be encoded"
        ):
            searcher.search_media(tmp_path / "new.mp4")


def test_a_method_that_is_not_trained_yet_names_the_command(place):
    with (
        pytest.raises(UserError, match=r"pack-gare is not done yet; run `crossreel run .*toml` first"),
        Searcher(open_project(place, ["trainers.gare.mode=frozen"], ["gare"])),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the query is empty"),
        (" \n ", "the query is empty"),
        ("a" * (MOST_CHARACTERS + 1), "the query has 1001 characters; at most 1000 are possible"),
        ("two\nlines", r"a control character \('\\n'\) at position 4"),
        ("half \ud83d", r"half a character \('\\ud83d'\) at position 6"),
    ],
)
def test_a_sentence_that_cannot_be_searched_for_is_refused(text, reason):
    with pytest.raises(UserError, match=reason):
        require_text(text)


def test_sentences_of_any_script_may_be_as_long_as_is_possible():
    for text in ("钟 bell 🔔", "é" * MOST_CHARACTERS):
        assert require_text(text) == text


@pytest.mark.slow
@pytest.mark.long
def test_the_command_prints_json_and_a_table(place, searcher, verb):
    code, out, err = verb("--caption", "clip03.mp4#1", place, "--top", 2, "--json")
    told = json.loads(out)
    hits = searcher.search_caption("clip03.mp4#1", 2)
    assert code == 0 and err == "" and told["method"] == "hlformer" and told["split"] == "test"
    assert told["hits"] == json.loads(json.dumps([hit.as_json() for hit in hits]))
    code, out, err = verb("clip 3 seen 1 times", place, "--method", "hlformer")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["place", "score", "item", "moment", "caption"]
    assert lines[1].split()[:3] == ["1", f"{hits[0].score:.3f}", hits[0].item] and len(lines) == 4
    assert "searched 'test' with hlformer in" in err
    code, out, err = verb("--video", place.with_name("clip03.mp4"), place, "--top", 1)
    assert code == 0 and out.splitlines()[0].split() == ["place", "score", "item", "caption"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "say what to search for"),
        (("a", "sentence", "without", "quotes"), "'quotes' is one argument too many; put the sentence in quotes"),
        (("--caption", "x", "--media", "y"), "--caption and --media exclude each other"),
        (("a clip", "--top", 0), "0 results are not possible; from 1 to 1000 are"),
        (("", "EXPERIMENT"), "the query is empty"),
        (("a clip", "EXPERIMENT", "--method", "hlfromer"), "no method 'hlfromer'; did you mean 'hlformer'?"),
        (("a clip", "EXPERIMENT", "--set", "methods=hlformer,gare"), "say --method and one of gare, hlformer"),
        (("--caption", "clip03.mp4#9", "EXPERIMENT"), "no caption 'clip03.mp4#9' in the split 'test'; did you mean"),
        (("a clip", "nowhere.toml"), "no experiment file nowhere.toml"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said_in_one_sentence(place, verb, arguments, reason):
    code, _, err = verb(*(place if word == "EXPERIMENT" else word for word in arguments))
    assert code == 2 and reason in err and "\n" not in err.strip()


def test_a_closed_searcher_leaves_no_process(place):
    with Searcher(open_project(place)) as searcher:
        searcher.search_caption("clip03.mp4#0")
        pid = searcher._child.pid
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(RuntimeError):
        searcher.search_caption("clip03.mp4#0")
