"""A trained run stays usable when its experiment or corpus changes: search, compare, report; and on another corpus."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from flows.project import open_project
from flows.search.searched import find_searched
from flows.trained.runs import evaluations, trained_runs
from pipeline.corpus.manifest import Caption, Corpus, Item, write_manifest
from pipeline.media import video
from trainers.measure.evaluated import EvaluatedFolder

NEWER = ("--set", "extractors.clip.dtype=float32")  # every feature of today's settings is missing then
SENTENCE = "a red square that nobody described"


def hits(ended) -> list[str]:
    assert ended.code == 0, ended.err
    return [hit["item"] for hit in json.loads(ended.out)["hits"]]


def grown(lab) -> None:
    """One more item in each split; the training's own split has changed."""
    items = list(Corpus.read(lab.folder / "corpus.jsonl").items)
    for n, split in enumerate(("train", "val", "test")):
        name = f"more{n}.mp4"
        with shutil.copy(lab.folder / f"clip0{n}.mp4", lab.folder / name).open("ab") as file:
            file.write(b"\0" * (n + 1))
        items.append(Item(name[:-4], split, (Caption(f"{name}#0", f"another clip, number {n}"),), name))
    write_manifest(lab.folder / "corpus.jsonl", items)


def figures(folder: Path) -> dict[str, dict[str, float]]:
    """The value of each metric by direction."""
    estimates = EvaluatedFolder(folder).metrics.estimates
    return {way: {name: one.value for name, one in of.items()} for way, of in estimates.items()}


def made_folders(lab) -> set[str]:
    return {str(path) for path in (lab.store / "runs").glob("*/*")} | {
        str(path) for path in (lab.store / "segments").glob("*/*")
    }


@pytest.fixture
def changes(made, monkeypatch):
    """Ways in which a finished experiment becomes stale, each with words of the sentence that says so."""

    def another_ffmpeg():
        monkeypatch.setattr(video, "ffmpeg_version", lambda: "99.1")
        return (), "compress.ffmpeg was"

    def another_version():
        from trainers.hlformer.declaration import HLFORMER

        monkeypatch.setattr(HLFORMER, "version", HLFORMER.version + 1)
        return (), "the code of hlformer was version"

    def a_grown_corpus():
        grown(made)
        return (), "the split 'train' has changed"

    return {
        "ffmpeg": another_ffmpeg, "version": another_version, "corpus": a_grown_corpus,
        "setting": lambda: (NEWER, "clip.dtype was 'float16' and is 'float32'"),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("change", ["ffmpeg", "version", "corpus", "setting"])
def test_what_is_finished_answers_whatever_became_stale(made, changes, change):
    before = hits(made.run("search", "--caption", "clip03.mp4#0", made.toml, "--json"))
    sets, words = changes[change]()
    folders = made_folders(made)
    ended = made.run("search", "--caption", "clip03.mp4#0", made.toml, "--json", *sets)
    assert hits(ended) == before
    told = json.loads(ended.out)
    (run,) = trained_runs(open_project(made.toml).store)
    assert told["run"] == run.fingerprint
    assert told["note"].startswith(f"hlformer is {run.name} of ") and "trained on 6 items" in told["note"]
    assert "it is stale: " in told["note"] and words in told["note"], told["note"]
    compared = made.run("compare", made.toml, run.folder.folder.parent.parent / "evaluate-hlformer" /
                        evaluations(run)[0].fingerprint, *sets)  # fmt: skip
    assert compared.code == 0 and words in compared.err, compared.err
    assert made_folders(made) == folders  # nothing was made that nobody asked for
    drawn = made.run("report", made.toml, *sets)
    assert drawn.code == 0 and words in drawn.err, drawn.err
    page = Path(drawn.out.split()[-1]).read_text()
    assert "<strong>Stale</strong>: hlformer is" in page and "clip03" in page


@pytest.mark.slow
def test_a_new_sentence_is_encoded_as_the_run_was_made(made):
    today = made.run("search", SENTENCE, made.toml, "--json")
    stale = made.run("search", SENTENCE, made.toml, "--json", *NEWER)
    assert (
        json.loads(stale.out)["hits"] == json.loads(today.out)["hits"]
    )  # clip_text has run's dtype, not today's


def test_an_item_that_left_the_corpus_is_still_found_by_its_digest(made):
    before = hits(made.run("search", "--caption", "clip03.mp4#0", made.toml, "--json"))
    items = Corpus.read(made.folder / "corpus.jsonl").items
    key = open_project(made.toml).contents.digests["clip07"]
    write_manifest(
        made.folder / "corpus.jsonl", [item for item in items if item.id not in ("clip00", "clip07")]
    )
    after = hits(made.run("search", "--caption", "clip03.mp4#0", made.toml, "--json"))
    assert after == [key if item == "clip07" else item for item in before]


def test_one_survey_serves_a_search(made, monkeypatch):
    from pipeline.store.store import Store

    made.run("search", "--caption", "clip03.mp4#0", made.toml)  # makes the index
    read, places_of = [], Store.places_of
    monkeypatch.setattr(
        Store, "places_of", lambda self, stage, *more: read.append(stage) or places_of(self, stage, *more)
    )
    found = find_searched(open_project(made.toml))
    assert found.indexed and found.note == "" and sorted(read) == ["clip", "clip_text", "compress"]


def test_runs_are_listed_by_the_names_that_verbs_take(made):
    (run,) = json.loads(made.run("runs", made.toml, "--json").out)
    assert (run["method"], run["items"], run["evaluated"], run["today"]) == (
        "hlformer",
        6,
        ["test"],
        "current",
    )
    assert run["name"] == f"hlformer@{run['fingerprint'][:8]}"
    (stale,) = json.loads(made.run("runs", made.toml, "--json", *NEWER).out)
    assert stale["today"].startswith("stale: clip.dtype was 'float16'")
    assert run["name"] in made.run("runs", made.toml).out
    digest = run["name"].partition("@")[2]
    for word in (run["name"], digest):
        assert made.run("search", "--caption", "clip03.mp4#0", made.toml, "--run", word).code == 0
    wrong = made.run("search", "--caption", "clip03.mp4#0", made.toml, "--run", "hlformer@ffffffff")
    assert (
        wrong.code == 2 and f"no run 'hlformer@ffffffff' in {made.store}" in wrong.err and digest in wrong.err
    )


@pytest.mark.slow
def test_a_run_applied_to_its_own_split_measures_what_its_evaluation_measured(made):
    run = trained_runs(open_project(made.toml).store)[0]
    ended = made.run("apply", run.name, "corpus.jsonl", "--split", "test", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    own = made.store / "runs" / "evaluate-hlformer" / evaluations(run)[0].fingerprint
    assert figures(Path(told["evaluation"])) == figures(own)
    assert (told["items"], told["captions"], told["items_of_training"]) == (3, 6, 0)
    assert "applied" not in EvaluatedFolder(own).metrics.protocol.as_json()
    assert told["protocol"]["applied"].startswith(
        f"{run.name}, trained on 6 items of corpus.jsonl, applied to"
    )
    assert [stage["ran"] for stage in told["stages"] if stage["stage"] in ("compress", "clip")] == [0, 0]
    again = json.loads(made.run("apply", run.name, "corpus.jsonl", "--split", "test", "--json").out)
    assert again["stages_ran"] == 0


@pytest.mark.slow
def test_a_run_ranks_new_items_that_are_extracted_as_it_was(made, clip_of):
    for n in range(3):
        clip_of(made.folder / f"new{n}.mp4", 2, hue=100 + 17 * n)
    (made.folder / "broken.mp4").write_bytes(b"no video")
    names = ("new0", "new1", "new2", "broken")
    write_manifest(made.folder / "new.jsonl", [
        Item(name, "train", (Caption(f"{name}#0", f"the clip {name}"),), f"{name}.mp4") for name in names
    ])  # fmt: skip
    ended = made.run("apply", "hlformer", "new.jsonl", "--json", *NEWER)  # what is set today does not count
    assert ended.code == 3, ended.err
    told = json.loads(ended.out)
    assert [failure["name"] for stage in told["stages"] for failure in stage["failures"]] == ["broken"]
    assert told["leaderboard"][0]["gallery"] == 3 and told["leaderboard"][0]["queries"] == 3
    assert {path.name for path in (made.store / "segments" / "clip").iterdir()} == {
        state.fingerprint.hex for name, state in open_project(made.toml).survey().items() if name == "clip"
    }
    found = made.run("search", SENTENCE, made.toml, "--corpus", "new.jsonl", "--json")
    assert sorted(hits(found)) == ["new0", "new1", "new2"]
    assert json.loads(found.out)["note"].endswith("applied to new.jsonl")
    (row,) = json.loads(made.run("stage", "evaluate", made.toml, "--json").out)["leaderboard"]
    assert row["gallery"] == 3 and row["queries"] == 6  # of the trained corpus, as before


@pytest.mark.slow
@pytest.mark.long
def test_a_gallery_without_captions_is_ranked_and_not_measured(made):
    item = Item("alone", "train", (), "clip00.mp4")
    write_manifest(made.folder / "new.jsonl", [item])
    before = made.run("search", SENTENCE, made.toml, "--corpus", "new.jsonl")
    assert before.code == 2 and "was not applied to new.jsonl yet" in before.err
    ended = made.run("apply", f"{made.toml}:hlformer", "new.jsonl", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["evaluation"] is None and told["leaderboard"] == [] and told["captions"] == 0
    assert (
        told["items_of_training"] == 1
        and "1 of the 1 items are among those it was trained on" in told["notes"]
    )
    found = json.loads(made.run("search", SENTENCE, made.toml, "--corpus", "new.jsonl", "--json").out)
    assert [(hit["item"], hit["captions"]) for hit in found["hits"]] == [("alone", [])]
    media = made.run("search", "--media", "clip01.mp4", made.toml, "--corpus", "new.jsonl")
    assert media.code == 2 and "have no captions to be found" in media.err


@pytest.mark.slow
@pytest.mark.long
def test_a_run_is_evaluated_on_the_split_of_a_corpus_that_has_grown(made):
    grown(made)
    ended = made.run("apply", f"{made.toml}:hlformer", "corpus.jsonl", "--split", "test", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert (told["items"], told["captions"]) == (4, 7)
    assert not [stage for stage in told["stages"] if stage["stage"].startswith("train-") and stage["ran"]]


def test_what_cannot_be_applied_is_said_in_one_sentence(made):
    write_manifest(
        made.folder / "clouds.jsonl", [Item("a", "test", (Caption("a#0", "x"),), "a.ply", "pointcloud")]
    )
    for words, reason in (
        (("hlformer", "clouds.jsonl"), "ranks items of the kind video, and clouds.jsonl holds pointcloud"),
        (("hlformer", "nowhere.jsonl"), "no corpus manifest nowhere.jsonl"),
        (
            ("hlfromer", "corpus.jsonl"),
            "'hlfromer' is not a method of experiment.toml; did you mean 'hlformer'?",
        ),
        (
            ("hlformer", "corpus.jsonl", "--split", "tset"),
            "corpus.jsonl has no split 'tset'; did you mean 'test'?",
        ),
        (("nowhere.toml:gare", "corpus.jsonl"), "there is no experiment nowhere.toml"),
        ((made.store / "runs", "corpus.jsonl"), "runs' is not a method of experiment.toml"),
    ):
        ended = made.run("apply", *words)
        assert ended.code == 2 and reason in ended.err, ended.err
        assert "Traceback" not in ended.err and ended.err.count("crossreel: ") == 1


@pytest.mark.slow
def test_weights_that_moved_are_found_where_the_experiment_says_and_others_are_refused(made):
    other = made.run(
        "apply", "hlformer", "corpus.jsonl", "--split", "test", "--set", 'extractors.clip.weights="seed:1"'
    )
    assert other.code == 0, other.err  # the record says which weights they were
    store = open_project(made.toml).store
    run = trained_runs(store)[0]
    record = run.folder.folder / "artifact.json"
    content = json.loads(record.read_text())
    content["made_from"]["clip"]["settings"]["weights"] = "nowhere.pt"
    record.write_text(json.dumps(content))
    moved = made.run("apply", "hlformer", "corpus.jsonl", "--split", "test", "--json")
    assert moved.code == 0 and json.loads(moved.out)["stages_ran"] == 0, moved.err
    refused = made.run("apply", run.name, "corpus.jsonl", "--set", 'extractors.clip.weights="seed:1"')
    assert refused.code == 2 and f"{run.name} cannot be applied here" in refused.err, refused.err
    assert "extractors.clip of the experiment says where weights are" in refused.err


@pytest.mark.slow
def test_reading_verbs_work_where_nothing_can_be_written(made, read_only):
    made.run("search", "--caption", "clip03.mp4#0", made.toml)
    ended = read_only(
        made.store,
        f"search --caption clip03.mp4#0 {made.toml}",
        f"search --caption clip03.mp4#0 {made.toml} {shlex.join(NEWER)}",
        f"runs {made.toml}",
        f"compare {made.toml}:hlformer {made.toml}:hlformer",
        f"search x {made.toml} --split val",
        "apply hlformer corpus.jsonl",
        cwd=made.folder,
    )
    assert ended.stdout.count("status 0\n") == 4 and ended.stdout.count("status 2\n") == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "cannot be written, and index-hlformer would have to be made" in ended.stderr
