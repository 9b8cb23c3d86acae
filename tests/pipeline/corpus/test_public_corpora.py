"""Public corpora: made annotation files in each layout, and real ones against a reading of the test's own."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.importers.activitynet import ACTIVITYNET
from pipeline.corpus.importers.charades import CHARADES
from pipeline.corpus.importers.didemo import DIDEMO
from pipeline.corpus.importers.msrvtt import MSRVTT
from pipeline.corpus.importers.msvd import MSVD
from pipeline.corpus.importers.published import Choice, Published, read_published, stem
from pipeline.corpus.importers.qvhighlights import QVHIGHLIGHTS
from pipeline.corpus.importers.table import Imported
from pipeline.corpus.importers.tvr import TVR
from pipeline.corpus.manifest import SPLITS, Corpus, Protocol, write_manifest
from pipeline.errors import UserError

REAL = Path(__file__).parents[4] / "shared/data/annotations"
HELD = "held out by a digest of their ids"


def lines(*rows: Any) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode() + b"\n"


def moments(sentences: int, shift: int = 0) -> dict[str, Any]:
    return {
        "duration": 29.2,
        "timestamps": [[n, n + 1.5] for n in range(sentences)],
        "sentences": [f" Sentence {n + shift} said. " for n in range(sentences)],
    }


def msrvtt() -> dict[str, Any]:
    videos = [f"video{n}" for n in range(12)]
    splits = ["train"] * 7 + ["validate"] * 2 + ["test"] * 3
    sentences = [
        {"video_id": v, "caption": f"{v} said {n % 3}", "sen_id": n} for n, v in enumerate(videos * 4)
    ]
    test = ["key,vid_key,video_id,sentence", *(f'ret{n},msr{n},video{n},"a, {n}"' for n in (10, 11))]
    return {
        "MSRVTT_train.9k.csv": lines("video_id", *videos[:10]),
        "MSRVTT_train.7k.csv": lines("video_id", *videos[:9]),
        "MSRVTT_JSFUSION_test.csv": lines(*test),
        "MSRVTT_data.json": {
            "videos": [{"video_id": v, "split": s} for v, s in zip(videos, splits, strict=True)],
            "sentences": sentences,
        },
    }


def msvd() -> dict[str, Any]:
    ids = {"train": ["a_1_2", "b_1_2"], "val": ["c_1_2"], "test": ["d_1_2"]}
    raw = {v: [["a", "man"], [v, "said"], ["a", "man"]] for found in ids.values() for v in found}
    return {f"{s}_list.txt": lines(*ids[s]) for s in SPLITS} | {"raw-captions.pkl": pickle.dumps(raw)}


def activitynet() -> dict[str, Any]:
    train = {f"v_t{n}": moments(n % 3 + 1) for n in range(10)}
    return {
        "train.json": train,
        "val_1.json": {"v_x": moments(2), "v_y": moments(1)},
        "val_2.json": {"v_y": moments(3, 7)},
    }


def didemo() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for number, split in enumerate(SPLITS):
        rows = [
            {
                "video": f"{split}{n % 2}.mov",
                "description": f"moment {n}.",
                "times": [[0, 0], [n, n + 1], [n, n + 1]],
            }
            for n in range(3)
        ]
        out |= {f"{split}_data.json": rows}
        out |= {f"{split}_list.txt": lines(f"{split}0.mp4", f"{split}1")} if number else {}
    return out


def charades() -> dict[str, Any]:
    train = [f"T{n % 12:02} {n}.5 {n + 2}.0##person {n} sits." for n in range(24)]
    return {"charades_sta_train.txt": lines(*train), "charades_sta_test.txt": lines("U1 0.0 3.4##a person.")}


def tvr() -> dict[str, Any]:
    row = {"duration": 60.0, "type": "v"}
    train = [
        {"vid_name": f"t{n % 11}", "ts": [n, n + 1], "desc": f"D {n}", "desc_id": n} | row for n in range(22)
    ]
    val = [{"vid_name": "v", "ts": [0, 2.29], "desc": f"E {n}", "desc_id": 100 + n} | row for n in range(2)]
    test = [{"vid_name": "w", "desc": "F", "desc_id": 200} | row]
    named = {"train": train, "val": val, "test_public": test}
    return {f"tvr_{name}_release.jsonl": lines(*rows) for name, rows in named.items()}


def qvhighlights() -> dict[str, Any]:
    def rows(name: str, count: int) -> bytes:
        return lines(*({"qid": f"{name}{n}", "query": f"Q {n}", "vid": f"{name}{n % 11}_60.0_210.0",
                        "relevant_windows": [[72, 82], [4, 10]]} for n in range(count)))  # fmt: skip

    return {f"highlight_{name}_release.jsonl": rows(name, 22 if name == "train" else 2) for name in SPLITS}


# corpus, its made files, what is chosen, and captions and videos of train, val and test
CASES: list[tuple[Published, Callable[[], dict[str, Any]], Choice, list[tuple[int, int]]]] = [
    (MSRVTT, msrvtt, Choice(), [(36, 9), (4, 1), (2, 2)]),
    (MSRVTT, msrvtt, Choice("9k", val="papers"), [(40, 10), (2, 2), (2, 2)]),
    (MSRVTT, msrvtt, Choice("7k", val="3"), [(24, 6), (12, 3), (2, 2)]),
    (MSRVTT, msrvtt, Choice("7k", val="0"), [(36, 9), (0, 0), (2, 2)]),
    (MSRVTT, msrvtt, Choice("full"), [(28, 7), (8, 2), (12, 3)]),
    (MSRVTT, msrvtt, Choice(splits=("val", "test")), [(0, 0), (4, 1), (2, 2)]),
    (MSVD, msvd, Choice(), [(6, 2), (3, 1), (3, 1)]),
    (ACTIVITYNET, activitynet, Choice(), [(9, 9), (1, 1), (2, 2)]),
    (ACTIVITYNET, activitynet, Choice("val_2"), [(10, 10), (2, 2), (1, 1)]),
    (ACTIVITYNET, activitynet, Choice(captions="moments"), [(19, 10), (3, 2), (3, 1)]),
    (DIDEMO, didemo, Choice(), [(2, 2), (2, 2), (2, 2)]),
    (DIDEMO, didemo, Choice(captions="moments"), [(3, 2), (3, 2), (3, 2)]),
    (CHARADES, charades, Choice(val="2"), [(20, 10), (4, 2), (1, 1)]),
    (TVR, tvr, Choice(), [(20, 10), (2, 1), (2, 1)]),
    (TVR, tvr, Choice("release"), [(22, 11), (2, 1), (1, 1)]),
    (QVHIGHLIGHTS, qvhighlights, Choice(), [(20, 10), (2, 1), (2, 2)]),
    (QVHIGHLIGHTS, qvhighlights, Choice("release"), [(22, 11), (2, 2), (2, 2)]),
]
NAMES = [f"{case[0].name} {'-'.join(map(str, vars(case[2]).values()))}" for case in CASES]
cases = pytest.mark.parametrize(("corpus", "files", "choice", "counts"), CASES, ids=NAMES)


def lay(folder: Path, files: dict[str, Any], packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return folder


def take(
    corpus: Published, folder: Path, choice: Choice | None = None, **chosen: Any
) -> tuple[Imported, Corpus]:
    """An import without videos unless a folder of them is chosen, written and read back."""
    given = vars(choice or Choice()) | ({} if "media" in chosen else {"no_media": True}) | chosen
    found = read_published(corpus, folder, folder.parent, Choice(**given))
    target = folder.parent / "corpus.jsonl"
    write_manifest(target, found.items, found.protocol)
    read = Corpus.read(target)
    assert list(read.items) == found.items
    return found, read


def sizes(corpus: Corpus) -> list[tuple[int, int]]:
    return [(sum(1 for _ in corpus.captions(split)), len(corpus.gallery(split))) for split in SPLITS]


def digests(corpus: Corpus) -> list[str]:
    return [corpus.split_digest(split) for split in corpus.splits]


def shuffled(name: str, value: Any) -> Any:
    """The same annotations in another order; the columns' names stay on top."""
    draw = random.Random(name)
    if isinstance(value, bytes) and not name.endswith(".pkl"):
        head, rows = value.splitlines()[: name.endswith(".csv")], value.splitlines()[name.endswith(".csv") :]
        return b"\n".join([*head, *draw.sample(rows, len(rows))])
    if isinstance(value, list):
        return draw.sample(value, len(value))
    if isinstance(value, dict):
        whole = {"videos", "sentences"} <= set(value)
        inside = {k: shuffled(name, v) for k, v in value.items()} if whole else value
        return dict(draw.sample(list(inside.items()), len(inside)))
    return value


@cases
def test_every_layout_gives_its_splits_plain_packed_and_in_any_order(corpus, files, choice, counts, tmp_path):
    found, read = take(corpus, lay(tmp_path / "plain/x", files()), choice)
    assert sizes(read) == counts and found.left_out == []
    packed, again = take(corpus, lay(tmp_path / "packed/x", files(), packed=True), choice)
    assert again.items == read.items and packed.protocol == found.protocol
    other = {name: shuffled(name, value) for name, value in files().items()}
    _, moved = take(corpus, lay(tmp_path / "moved/x", other), choice)
    assert sizes(moved) == counts
    if choice.captions != "" or corpus not in (ACTIVITYNET, DIDEMO):  # a paragraph has its sentences in order
        assert digests(moved) == digests(read)


@cases
def test_windows_line_ends_and_byte_order_marks_change_nothing(corpus, files, choice, counts, tmp_path):
    _, read = take(corpus, lay(tmp_path / "plain/x", files()), choice)
    other = {
        name: b"\xef\xbb\xbf" + value.replace(b"\n", b"\r\n")
        for name, value in files().items()
        if isinstance(value, bytes) and not name.endswith(".pkl")
    }
    _, again = take(corpus, lay(tmp_path / "dos/x", files() | other), choice)
    assert again.items == read.items


@cases
def test_videos_are_found_in_depth_and_what_is_missing_is_left_out_and_named(
    corpus, files, choice, counts, tmp_path
):
    folder = lay(tmp_path / "x", files())
    _, bare = take(corpus, folder, choice)
    for number, item in enumerate(bare.items):
        path = tmp_path / f"videos/{number % 2}/{item.id}{('.mp4', '.AVI')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found, whole = take(corpus, folder, choice, media=tmp_path / "videos")
    assert sizes(whole) == counts and found.left_out == [] and digests(whole) == digests(bare)
    assert all((whole.media_path(item) or Path()).is_file() for item in whole.items)
    gone = bare.items[-1].id
    for path in tmp_path.rglob(f"{gone}.*"):
        path.unlink()
    found, less = take(corpus, folder, choice, media=tmp_path / "videos")
    assert found.left_out == [f"{gone}: no video of that name in {tmp_path / 'videos'}"]
    assert {item.id: item.split for item in less.items} == {
        item.id: item.split for item in bare.items if item.id != gone
    }
    assert found.protocol and f"1 of {len(bare.items)} videos are missing" in found.protocol.sentence


@pytest.mark.parametrize(
    ("corpus", "files", "lost", "splits", "left"),
    [
        (MSRVTT, msrvtt, "MSRVTT_train.9k.csv", ["train"], ["test"]),
        (MSRVTT, msrvtt, "MSRVTT_data.json", ["train"], ["test"]),
        (MSRVTT, msrvtt, "MSRVTT_JSFUSION_test.csv", ["test"], ["train", "val"]),
        (MSVD, msvd, "val_list.txt", ["val"], ["train", "test"]),
        (MSVD, msvd, "raw-captions.pkl", ["train", "val", "test"], []),
        (ACTIVITYNET, activitynet, "val_1.json", ["test"], ["train", "val"]),
        (ACTIVITYNET, activitynet, "val_2.json", [], ["train", "val", "test"]),
        (DIDEMO, didemo, "test_data.json", ["test"], ["train", "val"]),
        (CHARADES, charades, "charades_sta_train.txt", ["train"], ["test"]),
        (TVR, tvr, "tvr_val_release.jsonl", ["test"], ["train", "val"]),
        (QVHIGHLIGHTS, qvhighlights, "highlight_train_release.jsonl", ["train"], ["test"]),
    ],
)
def test_a_split_whose_file_is_missing_is_named_and_the_others_are_taken(
    corpus, files, lost, splits, left, tmp_path
):
    folder = lay(tmp_path / "x", {name: value for name, value in files().items() if name != lost})
    if not left:
        with pytest.raises(UserError, match=f"gives no captions of {corpus.name}; the split train"):
            take(corpus, folder)
        return
    found, read = take(corpus, folder)
    assert [line.split(":")[0] for line in found.left_out] == [f"the split {split}" for split in splits]
    assert read.splits == left and all(lost in line or "json" in line for line in found.left_out)
    assert found.protocol and (f"imported: {', '.join(left)} alone" in found.protocol.sentence) == bool(
        splits
    )


def test_a_split_alone_needs_the_files_of_no_other(tmp_path):
    files = charades() | {"charades_sta_train.txt": b"\xff no annotations"}
    folder = lay(tmp_path / "x", files)
    found, corpus = take(CHARADES, folder, splits=("test",))
    assert sizes(corpus) == [(0, 0), (0, 0), (1, 1)] and found.left_out == []
    found, corpus = take(CHARADES, folder, splits=("val",), val="papers")
    assert sizes(corpus) == [(0, 0), (1, 1), (0, 0)]
    (folder / "charades_sta_train.txt").unlink()
    found, _ = take(CHARADES, folder, splits=("val", "test"))
    assert [line.split(":")[0] for line in found.left_out] == ["the split train"]


# what each layout means ----------------------------------------------------------------------------


def test_msrvtt_takes_jsfusions_sentence_for_test_and_every_caption_for_training(tmp_path):
    found, corpus = take(MSRVTT, lay(tmp_path / "x", msrvtt()))
    assert [(i.id, c.text) for i, c in corpus.captions("test")] == [
        ("video10", "a, 10"),
        ("video11", "a, 11"),
    ]
    video = next(item for item in corpus.items if item.id == "video0")
    assert [c.text for c in video.captions] == ["video0 said 0"] * 4  # doubles are pairs, as published
    assert found.protocol and found.protocol.name == "MSR-VTT 1k-A"
    assert found.protocol.sentence.endswith(f"validated on 1 training videos {HELD}")


def test_validating_as_the_papers_do_gives_val_the_queries_of_test(tmp_path):
    found, corpus = take(MSRVTT, lay(tmp_path / "x", msrvtt()), val="papers")
    assert corpus.split_digest("val") == corpus.split_digest("test")
    assert found.protocol and "validated on the test split, as the papers do" in found.protocol.sentence
    assert {item.split for item in corpus.items} == {"train", "test"}


def test_which_videos_are_held_out_depends_on_their_ids_alone(tmp_path):
    files = charades()
    _, three = take(CHARADES, lay(tmp_path / "x", files), val="3")
    _, five = take(CHARADES, lay(tmp_path / "x", files), val="5")
    held = [{item.id for item in corpus.gallery("val")} for corpus in (three, five)]
    assert held[0] < held[1] and len(held[1]) == 5


def test_msvd_reads_json_of_the_same_shape_and_texts_that_python_2_pickled(tmp_path):
    files = msvd()
    _, pickled = take(MSVD, lay(tmp_path / "x", files))
    table = pickle.loads(files.pop("raw-captions.pkl"))
    _, plain = take(MSVD, lay(tmp_path / "y", files | {"raw-captions.json": table}))
    assert plain.items == pickled.items
    assert pickled.items[0].captions[1].text == "a_1_2 said"
    old = b"(dp0\nS'a_1_2'\np1\n(lp2\n(lp3\nS'caf\\xc3\\xa9'\naas."  # protocol 0, bytes of UTF-8
    found, _ = take(MSVD, lay(tmp_path / "z", files | {"raw-captions.pkl": old}))
    assert found.items[0].captions[0].text == "café"
    assert "train_list.txt, line 2: b_1_2 has no captions" in found.left_out


class Harm:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pickle.dumps({"a_1_2": [Harm()]}), "it names (posix|nt).system; only lists"),
        (pickle.dumps(Path("x")), "it names pathlib"),
        (pickle.dumps({"a_1_2": [["x"]]})[:-8], "is not a pickle of plain captions"),
        (b"no pickle", "is not a pickle of plain captions"),
        (b"\x80\x09.", "unsupported pickle protocol"),
        (b"", "is empty"),
        (pickle.dumps([1]), "holds a list, a table of captions by video id is needed"),
    ],
)
def test_a_pickle_that_is_more_than_captions_is_refused_and_never_run(data, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        take(MSVD, lay(tmp_path / "x", msvd() | {"raw-captions.pkl": data}))
    assert not (tmp_path / "harmed").exists()


def test_activitynet_joins_sentences_over_the_whole_video_or_takes_them_one_by_one(tmp_path):
    folder = lay(tmp_path / "x", activitynet())
    _, corpus = take(ACTIVITYNET, folder)
    (_, caption), _ = corpus.captions("test")
    assert (caption.text, caption.start, caption.end) == ("Sentence 0 said. Sentence 1 said.", 0.0, 30.0)
    _, corpus = take(ACTIVITYNET, folder, captions="moments")
    shared = next(item for item in corpus.items if item.id == "v_y")
    assert [(c.id, c.split, c.start, c.end) for c in shared.captions if not c.split] == [
        ("v_y#1", None, 0.0, 1.5), ("v_y#2", None, 1.0, 2.5), ("v_y#3", None, 2.0, 3.5),
    ]  # fmt: skip
    assert [(c.id, c.split) for c in shared.captions if c.split] == [("v_y#0", "val")]


def test_activitynets_id_lists_say_which_videos_count(tmp_path):
    lists = {"train_ids.json": [f"v_t{n}" for n in range(8)] + ["v_gone"], "val_ids.json": ["v_y"]}
    found, corpus = take(ACTIVITYNET, lay(tmp_path / "x", activitynet() | lists), val="0")
    assert sizes(corpus) == [(8, 8), (0, 0), (1, 1)]
    assert found.left_out == ["train_ids.json, entry 9: v_gone has no captions"]
    assert "2 videos with captions are not in train_ids.json, v_t8 is one" in found.notes


def test_videos_of_activitynet_are_found_with_and_without_their_prefix(tmp_path):
    folder = lay(tmp_path / "x", {"val_1.json": {"v_x": moments(1), "v_-y": moments(1)}})
    for name in ("x.mp4", "v_-y.mkv"):
        (folder / name).touch()
    found, _ = take(ACTIVITYNET, folder, media=folder, splits=("test",))
    assert {item.id: item.media for item in found.items} == {"v_x": "x/x.mp4", "v_-y": "x/v_-y.mkv"}


def test_didemo_takes_the_moment_most_annotators_chose_and_drops_suffixes(tmp_path):
    folder = lay(tmp_path / "x", didemo())
    _, corpus = take(DIDEMO, folder, captions="moments")
    said = [c for _, c in corpus.captions("test")]
    assert [(c.start, c.end) for c in said] == [(0.0, 10.0), (10.0, 20.0), (5.0, 15.0)]
    _, corpus = take(DIDEMO, folder)
    assert [(i.id, c.text, c.start, c.end) for i, c in corpus.captions("test")] == [
        ("test0", "moment 0. moment 2.", 0.0, 31.0), ("test1", "moment 1.", 0.0, 31.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "known"), [("a.mov.mp4", "a"), ("b_1.0_2.0", "b_1.0_2.0"), (".mp4", ".mp4")]
)
def test_a_stem_is_a_name_without_the_suffixes_of_videos(name, known):
    assert stem(name) == known


def test_a_query_of_qvhighlights_lasts_from_its_first_window_to_its_last(tmp_path):
    _, corpus = take(QVHIGHLIGHTS, lay(tmp_path / "x", qvhighlights()))
    _, caption = next(corpus.captions("test"))
    assert (caption.id, caption.start, caption.end) == ("val0_60.0_210.0#val0", 4.0, 82.0)


def test_a_moment_whose_end_comes_first_is_turned_round_and_reported(tmp_path):
    files = charades() | {"charades_sta_test.txt": lines("LEOL6 8.0 7.0##person is holding medicine.")}
    found, corpus = take(CHARADES, lay(tmp_path / "x", files))
    (_, caption), = corpus.captions("test")  # fmt: skip
    assert (caption.start, caption.end) == (7.0, 8.0)
    assert found.notes == ["charades_sta_test.txt, line 1: 8.0 s to 7.0 s is read as 7.0 s to 8.0 s"]


# mistakes ------------------------------------------------------------------------------------------

BAD_ROWS = [
    (CHARADES, charades, "charades_sta_test.txt",
     lines("U1 0 3##fine", "", "U2 0 3", "U3 0##x", "U4 0 3## ", "U5 a 3##x", "U6 0 inf##x", "U7 -1 3##x"),
     ["line 3: 'U2 0 3' is not of the form", "line 4: 'U3 0##x' is not of the form", "line 5: the sentence is empty",
      "line 6: 'a' is not a number of seconds", "line 7: 'inf' is not a number", "line 8: '-1' is not a number"]),
    (TVR, tvr, "tvr_val_release.jsonl",
     lines({"vid_name": "v", "desc": "fine", "desc_id": 1}, "{", "[1]", {"desc": "x"}, {"vid_name": "v", "desc": " "},
           {"vid_name": "v", "desc": "x", "ts": [1]}, {"vid_name": "v", "desc": "again", "desc_id": 1},
           {"vid_name": "v", "desc": "x", "desc_id": [2]}, '{"vid_name": "v", "desc": "\\ud800"}'),
     ["line 2: not a JSON object", "line 3: not a JSON object", "line 4: it has no text 'vid_name'",
      "line 5: its 'desc' is empty", "line 6: [1] is not a start and an end", "line 8: [2] is not an id",
      "line 7: the id 1 stands already at tvr_val_release.jsonl, line 1", "line 9: it holds half a character"]),
    (QVHIGHLIGHTS, qvhighlights, "highlight_val_release.jsonl",
     lines({"vid": "v", "query": "fine"}, {"vid": "v", "query": "x", "relevant_windows": []},
           {"vid": "v", "query": "x", "relevant_windows": [[1, True]]}),
     ["line 2: its relevant_windows [] are not a list", "line 3: True is not a number of seconds"]),
    (MSRVTT, msrvtt, "MSRVTT_JSFUSION_test.csv",
     lines("key,video_id,sentence", "0,video10,fine", "1,video11", "2,,x", "3,video11, "),
     ["line 3: it has no text 'sentence'", "line 4: its 'video_id' is empty", "line 5: its 'sentence' is empty"]),
    (MSVD, msvd, "raw-captions.pkl",
     pickle.dumps({"a_1_2": [["x"], [], [1], 5], "b_1_2": None, "c_1_2": [["x"]], "d_1_2": ["a text"]}),
     ["a_1_2, caption 2: the caption is empty", "a_1_2, caption 3: not a list of words",
      "a_1_2, caption 4: not a list of words", "b_1_2: it has no list of captions", "b_1_2 has no captions"]),
    (ACTIVITYNET, activitynet, "val_1.json",
     {"v_a": moments(1), "v_b": {"sentences": []}, "v_c": [], "v_d": moments(1) | {"duration": None},
      "v_e": moments(2) | {"sentences": ["fine", " "]}},
     ["v_b: it has no list of sentences", "v_c: it has no list of sentences", "v_d: None is not a number of seconds",
      "v_e, sentence 2: its 'sentence' is empty"]),
    (DIDEMO, didemo, "test_data.json",
     [{"video": "test0.mov", "description": "fine"}, 3, {"video": "test1"}, {"description": "x"}],
     ["entry 2: not an object", "entry 3: it has no text 'description'", "entry 4: it has no text 'video'",
      "test_list.txt, line 2: test1 has no captions"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("corpus", "files", "name", "content", "told"), BAD_ROWS, ids=[case[0].name for case in BAD_ROWS]
)
def test_a_row_that_is_wrong_is_left_out_and_named_and_the_rest_is_taken(
    corpus, files, name, content, told, tmp_path
):
    found, read = take(corpus, lay(tmp_path / "x", files() | {name: content}))
    for words in told:
        assert any(words in line and (name in line or "list.txt" in line) for line in found.left_out), words
    assert len(found.left_out) == len(told), found.left_out
    assert sizes(read)[2][0] >= 1 and sizes(read)[0][0] >= 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("val_1.json", b"{\n 3", r"val_1.json, line 2, column 2: not valid JSON"),
        ("val_1.json", b"[]", "holds no object of video ids"),
        ("val_1.json", b"", "is empty"),
        ("val_1.json", b"{}\n\xff", r"val_1.json, line 2: not UTF-8"),
        ("val_1.json", b"[" * 100_000, "is not valid JSON"),
        ("val_1.json.gz", gzip.compress(b"{}", mtime=0)[:-9], "cannot be read"),
        ("val_1.json.gz", b"no gzip", "cannot be read"),
        ("val_ids.json", b'{"v_x": 1}', "holds no list"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(name, content, words, tmp_path):
    files = activitynet()
    if name == "val_1.json.gz":
        files.pop("val_1.json")
    with pytest.raises(UserError, match=words):
        take(ACTIVITYNET, lay(tmp_path / "x", files | {name: content}))


def test_a_table_without_its_column_is_one_sentence(tmp_path):
    folder = lay(tmp_path / "x", msrvtt() | {"MSRVTT_train.9k.csv": lines("video", "video0")})
    with pytest.raises(UserError, match="has no column 'video_id'; its columns: video"):
        take(MSRVTT, folder)


def test_ids_listed_twice_and_keys_that_stand_twice_are_reported(tmp_path):
    files = msvd() | {"train_list.txt": lines("a_1_2", "a_1_2", "b_1_2")}
    found, corpus = take(MSVD, lay(tmp_path / "x", files))
    assert found.notes == ["train_list.txt, line 2: a_1_2 stands already at train_list.txt, line 1"]
    assert sizes(corpus)[0] == (6, 2)
    twice = json.dumps(moments(1)).encode()
    files = activitynet() | {"val_1.json": b'{"v_x": ' + twice + b', "v_x": ' + twice + b"}"}
    found, _ = take(ACTIVITYNET, lay(tmp_path / "y", files))
    assert found.left_out == ["val_1.json: 'v_x' stands twice, the last counts"]


def test_a_video_of_train_and_test_is_reported(tmp_path):
    files = msvd() | {"test_list.txt": lines("a_1_2", "d_1_2")}
    found, corpus = take(MSVD, lay(tmp_path / "x", files))
    assert found.notes == ["train and test share 1 videos, a_1_2 is one"]
    assert sizes(corpus) == [(6, 2), (3, 1), (6, 2)] and len(corpus.items) == 4


def test_two_videos_of_one_stem_are_reported_and_the_first_by_name_is_taken(tmp_path):
    folder = lay(tmp_path / "x", charades())
    for name in ("b/U1.mp4", "a/U1.mkv", "other.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "U1.webm").mkdir()
    found, _ = take(CHARADES, folder, media=None, splits=("test",))
    assert [item.media for item in found.items] == ["x/a/U1.mkv"]
    assert found.notes == [
        "U1: a/U1.mkv is taken, first by name, not b/U1.mp4",
        f"1 videos in {folder} are in no imported split, other is one",
    ]


def test_links_that_lead_nowhere_or_in_circles_are_no_videos(tmp_path):
    files = {"charades_sta_test.txt": lines("-U1 0 1##a", "ü 0 1##b", "loop 0 1##c", "gone 0 1##d")}
    folder = lay(tmp_path / "x", files)
    for name in ("-U1.mp4", "ü.mp4"):
        (folder / name).touch()
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "gone.mp4").symlink_to("nowhere")
    (folder / "deep").symlink_to(folder)
    found, _ = take(CHARADES, folder, media=folder, splits=("test",))
    assert sorted(item.media or "" for item in found.items) == ["x/-U1.mp4", "x/ü.mp4"]
    assert [line.split(":")[0] for line in found.left_out] == ["loop", "gone"]


@pytest.mark.parametrize(
    ("corpus", "files", "choice", "words"),
    [
        (MSRVTT, msrvtt, Choice("1kA"), "MSR-VTT has no protocol '1kA'; did you mean '1k-A'?"),
        (MSRVTT, msrvtt, Choice(captions="moments"), "always one sentence; leave --captions out"),
        (MSRVTT, msrvtt, Choice(val="10"), "--val 10: possible are papers and a number of the 10 training"),
        (MSRVTT, msrvtt, Choice(val="paper"), "--val paper: possible are papers"),
        (MSRVTT, msrvtt, Choice("full", val="papers"), "MSR-VTT full has a validation split of its own"),
        (MSVD, msvd, Choice(val="1"), "has a validation split of its own; leave --val out"),
        (DIDEMO, didemo, Choice(captions="moment"), "has no captions 'moment'; did you mean 'moments'?"),
        (TVR, tvr, Choice(splits=("tests",)), "TVR has no split 'tests'; did you mean 'test'?"),
        (TVR, tvr, Choice(media=Path("none")), "none is not a folder of videos"),
    ],
)
def test_a_choice_that_is_none_is_one_sentence(corpus, files, choice, words, tmp_path):
    with pytest.raises(UserError) as raised:
        take(corpus, lay(tmp_path / "x", files()), choice, media=choice.media)
    assert words in str(raised.value)


def test_no_video_at_all_is_a_wrong_folder(tmp_path):
    with pytest.raises(UserError, match=r"holds none of the 13 videos.*--media.*--no-media"):
        take(CHARADES, lay(tmp_path / "x", charades()), media=None)
    with pytest.raises(UserError, match="is not a folder"):
        take(CHARADES, tmp_path / "none")


def test_a_caption_without_an_id_never_takes_the_place_of_one_that_has_it(tmp_path):
    row = {"vid_name": "v", "ts": [0, 1]}
    rows = [row | {"desc": "a"}, row | {"desc": "b", "desc_id": 0}, row | {"desc": "c"}]
    found, _ = take(TVR, lay(tmp_path / "x", {"tvr_val_release.jsonl": lines(*rows)}), splits=("test",))
    assert [(c.id, c.text) for c in found.items[0].captions] == [("v#1", "a"), ("v#0", "b"), ("v#2", "c")]
    assert found.left_out == []


def test_of_a_file_plain_and_packed_the_plain_one_counts(tmp_path):
    folder = lay(
        tmp_path / "x", charades() | {"charades_sta_test.txt.gz": gzip.compress(b"gone 0 1##x", mtime=0)}
    )
    _, corpus = take(CHARADES, folder)
    assert [item.id for item in corpus.gallery("test")] == ["U1"]


def test_two_files_that_fit_are_one_sentence(tmp_path):
    files = charades() | {"old_charades_sta_test.txt": b"U1 0 1##x"}
    with pytest.raises(
        UserError, match=r"has several files .*charades_sta_test\.txt: charades_sta_test\.txt, old_"
    ):
        take(CHARADES, lay(tmp_path / "x", files))


# the protocol beside the manifest ------------------------------------------------------------------


def test_the_protocol_is_quoted_until_a_split_changes(tmp_path):
    found, corpus = take(TVR, lay(tmp_path / "x", tvr()))
    assert found.protocol
    assert corpus.protocol("test") == {
        "name": "TVR prvr",
        "sentence": found.protocol.sentence,
        "queries": 2,
        "gallery": 1,
        "digest": corpus.split_digest("test"),
    }
    assert corpus.protocol("dev") is None
    rows = corpus.path.read_text().splitlines()
    corpus.path.write_text("\n".join(reversed(rows)))
    assert Corpus.read(corpus.path).protocol("test") == corpus.protocol("test")
    corpus.path.write_text("\n".join(rows[1:]))  # an item of train less
    assert Corpus.read(corpus.path).protocol("test") is None
    for text in ("{", "[]", "{}"):
        (tmp_path / "corpus.protocol.json").write_text(text)
        assert corpus.protocol("test") is None


def test_a_manifest_of_another_source_takes_the_protocol_away(tmp_path):
    _, corpus = take(TVR, lay(tmp_path / "x", tvr()))
    write_manifest(corpus.path, corpus.items)
    assert not (tmp_path / "corpus.protocol.json").exists() and corpus.protocol("test") is None
    write_manifest(corpus.path, corpus.items, Protocol("a", "b"))
    assert (corpus.protocol("test") or {})["name"] == "a"


# real annotation files -----------------------------------------------------------------------------

real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the folder {REAL} is not there")


def unpacked(name: str) -> str:
    return gzip.decompress((REAL / f"{name}.gz").read_bytes()).decode()


def alone(folder: Path, pattern: str) -> Path:
    folder.mkdir()
    for path in REAL.glob(pattern):
        (folder / path.name).symlink_to(path)
    return folder


@real
@pytest.mark.slow
@pytest.mark.parametrize("unit", ["paragraph", "moments"])
def test_real_activitynet_is_counted_right(unit, tmp_path):
    raw = {split: json.loads(unpacked(f"ActivityNet_{split}.json")) for split in SPLITS}
    found, corpus = take(ACTIVITYNET, alone(tmp_path / "x", "ActivityNet*"), captions=unit, protocol="val_2")
    for split, videos in raw.items():
        said = {v: [s.strip() for s in entry["sentences"]] for v, entry in videos.items()}
        texts = [" ".join(s) for s in said.values()]
        if unit == "moments":
            texts = [sentence for sentences in said.values() for sentence in sentences]
        assert sorted(caption.text for _, caption in corpus.captions(split)) == sorted(texts)
        assert {item.id for item in corpus.gallery(split)} == set(videos)
    assert found.left_out == []
    assert len(corpus.items) == len(raw["train"]) + len(raw["val"])  # test annotates videos of val again


@real
def test_real_charades_is_counted_right(tmp_path):
    found, corpus = take(CHARADES, alone(tmp_path / "x", "Charades*"), val="0")
    for split in ("train", "test"):
        rows = unpacked(f"Charades-STA_charades_sta_{split}.txt").split("\n")
        pairs = sorted((row.split()[0], row.split("##")[1].strip()) for row in rows if row)
        assert sorted((item.id, caption.text) for item, caption in corpus.captions(split)) == pairs
    assert found.left_out == [] and len(found.notes) == 4


@real
@pytest.mark.parametrize(
    ("corpus", "pattern", "name", "video", "query", "chosen"),
    [
        (TVR, "tvr*", "tvr_val_release.jsonl", "vid_name", "desc", {"splits": ("test",)}),
        (QVHIGHLIGHTS, "qv*", "qv_highlight_val_release.jsonl", "vid", "query", {}),
    ],
    ids=["TVR", "QVHighlights"],
)
def test_real_lines_are_counted_right(corpus, pattern, name, video, query, chosen, tmp_path):
    rows = [json.loads(row) for row in unpacked(name).split("\n") if row]
    found, read = take(corpus, alone(tmp_path / "x", pattern), **chosen)
    pairs = sorted((row[video], row[query].strip()) for row in rows)
    assert sorted((item.id, caption.text) for item, caption in read.captions("test")) == pairs
    assert len(read.gallery("test")) == len({row[video] for row in rows}) and found.left_out == []


@real
def test_real_pairs_of_msrvtt_are_counted_right(tmp_path):
    with (REAL / "MSRVTT_JSFUSION_test.csv").open(newline="") as file:
        pairs = [(row["video_id"], row["sentence"]) for row in csv.DictReader(file)]
    found, corpus = take(MSRVTT, REAL, splits=("test",))
    assert [(item.id, caption.text) for item, caption in corpus.captions("test")] == pairs
    assert found.left_out == [] and len(pairs) == 1000


def test_rows_of_a_published_table_that_cannot_be_distinguished_are_refused_and_odd_ones_named(tmp_path):
    pairs = lines("key,video_id,sentence", "0,video10,fine", "1,video11,a man, smiling", '2,video11,"b" c')
    found, _ = take(MSRVTT, lay(tmp_path / "x", msrvtt() | {"MSRVTT_JSFUSION_test.csv": pairs}))
    assert found.left_out == [
        "MSRVTT_JSFUSION_test.csv, line 3: it has 4 cells for 3 columns; a cell that holds the separator needs quotes",
        "MSRVTT_JSFUSION_test.csv, line 4: text stands behind a closing quote; a quote inside a quoted cell is written "
        'twice ("")',
    ]
    for text, words in (
        ('0,video10,"open\n1,video11,x', "line 2: a quote opens in this row and is not closed"),
        ('0,video10,"open\n1,video11,x"', "line 2: a quoted cell reaches over line 3"),
    ):
        pairs = f"key,video_id,sentence\n{text}\n".encode()
        with pytest.raises(UserError, match=words):
            take(MSRVTT, lay(tmp_path / text[-1:], msrvtt() | {"MSRVTT_JSFUSION_test.csv": pairs}))
