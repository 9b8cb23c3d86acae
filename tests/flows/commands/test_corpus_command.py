"""`corpus import` and `corpus check` of public corpora as a user types them, up to the figures' protocol."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.manifest import Caption, Corpus, Item, Protocol, write_manifest

TEST_LINES = "clip00 0.0 1.0##a first clip.\nclip01 0.5 1.5##a second clip.\r\nclip02 0 1##a third.\n"
TRAIN_LINES = "\n".join(f"clip{n:02} 0.0 1.0##training clip {n}." for n in range(3, 12))


@pytest.fixture
def charades(tmp_path: Path) -> Path:
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "charades_sta_test.txt").write_text(TEST_LINES, newline="")
    (folder / "charades_sta_train.txt.gz").write_bytes(gzip.compress(TRAIN_LINES.encode()))
    return folder


def test_a_public_corpus_is_imported_reported_and_checked(charades, rendered, tmp_path, crossreel):
    manifest = tmp_path / "c.jsonl"
    ended = crossreel(
        "corpus", "import", "charades", charades, "--media", rendered, "--out", manifest, "--val", 2
    )
    assert ended.code == 0, ended.err
    corpus = Corpus.read(manifest)
    assert ended.out.splitlines() == [
        f"{manifest}: 12 items (train 7, val 2, test 3), 12 captions",
        "protocol: Charades-STA sta: trained on charades_sta_train, tested on charades_sta_test, every moment a "
        "pair; validated on 2 training videos held out by a digest of their ids",
        *(f"{split}: {n} queries, gallery {n}, digest {corpus.split_digest(split)}"
          for split, n in (("train", 7), ("val", 2), ("test", 3))),
    ]  # fmt: skip
    checked = crossreel("corpus", "check", manifest)
    assert checked.code == 0 and "12 items, 0 errors, 3 warnings" in checked.out
    assert checked.out.count("with fewer than 10, figures say little") == 3
    rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join(rows[1:]))
    checked = crossreel("corpus", "check", manifest)
    assert "it was changed since its import, so figures do not quote c.protocol.json" in checked.out


def test_missing_videos_are_counted_and_listed_with_exit_status_three(
    charades, rendered, tmp_path, crossreel
):
    many = "\n".join(f"gone{n:02} 0.0 1.0##a clip {n}." for n in range(30))
    (charades / "charades_sta_test.txt").write_text(TEST_LINES + many)
    ended = crossreel(
        "corpus", "import", "charades", charades, "--media", rendered, "-o", tmp_path / "c.jsonl"
    )
    assert ended.code == 3
    assert ended.out.count("left out: gone") == 20 and "... and 10 more: left out" in ended.out
    assert "30 of 42 videos are missing" in ended.out
    listed = (tmp_path / "c.left-out.txt").read_text().splitlines()
    assert len(listed) == 30 and all(f"gone{n:02}: no video of that name" in listed[n] for n in range(30))


def test_annotations_alone_make_a_manifest_that_says_it_has_no_media(charades, tmp_path, crossreel):
    ended = crossreel("corpus", "import", "charades", charades, "--no-media", "--out", tmp_path / "c.jsonl")
    assert ended.code == 0, ended.err
    checked = crossreel("corpus", "check", tmp_path / "c.jsonl")
    assert "12 items, 0 errors" in checked.out
    (tmp_path / "e.toml").write_text('corpus = "c.jsonl"\nextract = ["compress"]\n')
    ended = crossreel("stage", "compress", tmp_path / "e.toml")
    assert ended.code == 2 and "has no media to make compress of" in ended.err


FAULTS = {  # each made the command end with 0 and a manifest that was wrong
    "unclosed.csv": (
        2,
        'v1.mp4,a,train\nv5.mp4,"e unclosed,test\nv2.mp4,b,train\n',
        "line 3: a quote opens in this row",
    ),
    "commas.csv": (
        3,
        "v1.mp4,a man, smiling, walks,train\nv2.mp4,b,train\nv3.mp4,c,test\n",
        "line 2: it has 5 cells",
    ),
    "splits.csv": (
        0,
        "v1.mp4,train caption,train\nv1.mp4,test caption,test\n",
        "each caption stays in its own",
    ),
    "time.csv": (2, "v1.mp4,a,tset\n", "unknown split 'tset'; did you mean 'test'?"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_table_that_is_wrong_is_not_taken_for_right(name, tmp_path, crossreel):
    code, rows, words = FAULTS[name]
    for n in range(1, 6):
        (tmp_path / f"v{n}.mp4").touch()
    (tmp_path / name).write_text("video,caption,split\n" + rows)
    ended = crossreel("corpus", "import", "csv", tmp_path / name, "-o", tmp_path / "c.jsonl")
    assert ended.code == code and words in ended.out + ended.err
    assert (tmp_path / "c.jsonl").exists() == (code != 2)


def test_a_folder_that_grows_leaves_splits_as_they_are_and_a_move_needs_a_flag(tmp_path, crossreel):
    for n in range(20):
        (tmp_path / f"media/clip{n}.mp4").parent.mkdir(exist_ok=True)
        (tmp_path / f"media/clip{n}.mp4").touch()
        (tmp_path / f"media/clip{n}.txt").write_text(f"clip {n}")

    def run(code: int, *options: object) -> str:
        ended = crossreel(
            "corpus", "import", "folder", tmp_path / "media", "-o", tmp_path / "c.jsonl", *options
        )
        assert ended.code == code, ended
        return ended.out + ended.err

    def split() -> dict[str, str]:
        return {item.id: item.split for item in Corpus.read(tmp_path / "c.jsonl").items}

    run(0)
    before = split()
    (tmp_path / "media/a_new.mp4").touch()
    (tmp_path / "media/a_new.txt").write_text("new")
    run(0)
    assert {name: split()[name] for name in before} == before and len(split()) == 21
    before = split()
    assert "of its 21 items would move to another split" in run(2, "--ratio", "1:1:1")
    assert split() == before
    said = run(0, "--ratio", "1:1:1", "--keep-splits", tmp_path / "c.jsonl")
    assert "21 items keep their split" in said and "would be in another split" in said and split() == before
    run(0, "--ratio", "1:1:1", "--move-splits")
    assert split() != before
    assert "no item fell into the split val: 21 items" in run(0, "--ratio", "1:0.0001:0", "--move-splits")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("folder", ".", "--ratio", "70:30"),
            "--ratio 70:30: three numbers for train, val and test are needed",
        ),
        (("msvd", ".", "--ratio", "7:2:1"), "--ratio is for the user's own media"),
        (("msvd", ".", "--keep-splits", "c.jsonl"), "--keep-splits is for the user's own media"),
        (("charade", "."), "unknown layout 'charade'; did you mean 'charades'?"),
        (("charades", "nowhere"), "nowhere does not exist"),
        (
            ("charades", "annotations", "--no-media", "--media", "."),
            "--media and --no-media exclude each other",
        ),
        (("folder", ".", "--protocol", "9k"), "--protocol is for public corpora (msrvtt, msvd,"),
        (("csv", ".", "--split", "test"), "--split is for public corpora"),
        (("jsonl", ".", "--no-media"), "--no-media is for public corpora"),
        (("folder", ".", "--subset", "s3dis"), "--subset is for public corpora"),
        (("folder", ".", "--kind", "cloud"), "unknown --kind 'cloud'; did you mean 'pointcloud'?"),
        (("csv", ".", "--kind", "clouds"), "unknown --kind 'clouds'"),
        (("t3dr-hit", "."), "t3dr-hit needs --subset; possible: elephant, s3dis"),
        (
            ("t3dr-hit", ".", "--kind", "video"),
            "--kind is for the user's own media (folder, csv, jsonl, parquet)",
        ),
        (("t3dr-hit", ".", "--protocol", "v2"), "--protocol is for corpora of videos (msrvtt, msvd,"),
        (("msvd", ".", "--subset", "s3dis"), "--subset is for t3dr-hit, not for msvd"),
        (("charades", "annotations"), "holds none of the 12 videos"),
        (("tvr", "annotations", "--split", "tset"), "TVR has no split 'tset'; did you mean 'test'?"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    charades, crossreel, monkeypatch, tmp_path, arguments, words
):
    monkeypatch.chdir(tmp_path)
    ended = crossreel("corpus", "import", *arguments)
    assert ended.code == 2 and words in ended.err and len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "corpus.jsonl").exists()


def test_help_names_every_layout_and_imports_no_pyarrow(run_python):
    code = "import sys, flows.commands.corpus; sys.exit(len({'pyarrow', 'torch', 'trimesh'} & sys.modules.keys()))"
    assert run_python(code).code == 0
    told = run_python("from flows.cli import main; main()", "corpus", "import", "--help").out
    for layout in (
        "parquet",
        "msrvtt",
        "msvd",
        "activitynet",
        "didemo",
        "charades",
        "tvr",
        "qvhighlights",
        "t3dr-hit",
    ):
        assert layout in told


def test_names_of_every_kind_are_found_and_checked(rendered, tmp_path, crossreel):
    """A leading dash, spaces, quotes and letters beyond ASCII; one kind of trouble a video beside them."""
    folder = tmp_path / "x"
    (folder / "deep").mkdir(parents=True)
    good = ["-dash", "two words", 'quote\'s "q"', "ünï", "new\nline"]
    bad = ["empty", "cut"]
    content = (rendered / "clip00.mp4").read_bytes()
    for number, name in enumerate(good):
        (folder / f"deep/{name}.mp4").write_bytes((rendered / f"clip{number:02}.mp4").read_bytes())
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes(content[:600])
    (folder / "link.mp4").symlink_to("link.mp4")
    (folder / "folder.mp4").mkdir()
    rows: list[dict[str, Any]] = [
        {"vid_name": name, "desc": f"{name} said", "desc_id": n, "ts": [0, 1]}
        for n, name in enumerate([*good, *bad, "link", "folder"])
    ]
    (folder / "tvr_val_release.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ended = crossreel("corpus", "import", "tvr", folder, "--split", "test", "-o", tmp_path / "c.jsonl")
    assert ended.code == 3
    assert [line for line in ended.out.splitlines() if line.startswith("left out")] == [
        f"left out: {name}: no video of that name in {folder}" for name in ("link", "folder")
    ]
    found = json.loads(crossreel("corpus", "check", tmp_path / "c.jsonl", "--json").out)
    errors = [finding["sentence"] for finding in found if finding["level"] == "error"]
    assert sorted(sentence.split(":")[0] for sentence in errors) == sorted(bad)


def test_check_names_what_is_no_video_by_its_reason(rendered, run_ffmpeg, tmp_path, crossreel):
    run_ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", tmp_path / "sound.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/loop.mp4").write_bytes((rendered / "clip00.mp4").read_bytes())  # two files of one stem
    names = ("sound", "loop", "folder", "a/loop")
    items = [Item(name, "train", (Caption(name, f"{name} said"),), f"{name}.mp4") for name in names]
    write_manifest(tmp_path / "c.jsonl", items)
    ended = crossreel("corpus", "check", tmp_path / "c.jsonl")
    assert ended.code == 3
    told = dict(line.split(": ", 2)[1:] for line in ended.out.splitlines() if line.startswith("error"))
    assert set(told) == {"sound", "loop", "folder"}
    assert "no video stream" in told["sound"] and "not a file" in told["folder"]
    assert "cannot be read" in told["loop"]


def test_half_a_character_is_left_out_and_printed(tmp_path, crossreel):
    moment = {"duration": 3, "timestamps": [[0, 1]], "sentences": ["said"]}
    (tmp_path / "val_1.json").write_text(json.dumps({"v_\ud800": moment, "v_x": moment}))
    ended = crossreel(
        "corpus",
        "import",
        "activitynet",
        tmp_path,
        "--no-media",
        "--split",
        "test",
        "-o",
        tmp_path / "c.jsonl",
    )
    assert (
        ended.code == 3 and "left out: val_1.json, v_\\ud800, sentence 1: it holds half a char" in ended.out
    )


@pytest.mark.slow
def test_figures_quote_the_protocol_of_an_imported_corpus(made):
    manifest = made.folder / "corpus.jsonl"

    def measured() -> Any:
        (path,) = made.store.glob("runs/evaluate-hlformer/*/metrics.json")
        return json.loads(path.read_text())["protocol"]

    assert "corpus" not in measured()
    corpus = Corpus.read(manifest)
    write_manifest(manifest, corpus.items, Protocol("TVR prvr", "trained on train, tested on val"))
    ended = made.run("stage", "evaluate-hlformer", made.toml, "--redo")
    assert ended.code == 0, ended.err
    protocol = measured()
    assert protocol["corpus"] == corpus.describe()["test"] | {
        "name": "TVR prvr", "sentence": "trained on train, tested on val",
    }  # fmt: skip
    assert protocol["corpus"]["queries"] == protocol["captions"]


ROW = "0.1 0.2 0.3 9 8 %d\n1 2 3 4 5 6\n"


@pytest.mark.slow
def test_a_folder_and_a_table_of_point_clouds_are_imported_and_checked(tmp_path, crossreel):
    (tmp_path / "clouds").mkdir()
    for n in range(6):
        (tmp_path / f"clouds/room{n}.txt").write_text(ROW % n)
        (tmp_path / f"clouds/room{n}.captions.txt").write_text(f"room {n}\n")
    rows = "".join(f"clouds/room{n}.txt,room {n}\n" for n in range(6))
    (tmp_path / "captions.csv").write_text("media,caption\n" + rows)
    for layout, source in (("folder", "clouds"), ("csv", "captions.csv")):
        manifest = tmp_path / f"{layout}.jsonl"
        ended = crossreel(
            "corpus", "import", layout, tmp_path / source, "--kind", "pointcloud", "-o", manifest
        )
        assert ended.code == 0, ended.err
        assert {item.kind for item in Corpus.read(manifest).items} == {"pointcloud"}
        checked = crossreel("corpus", "check", manifest)
        assert checked.code == 0 and "6 items, 0 errors" in checked.out
        assert checked.out.count("2 points are too few for dgcnn, which needs 20") == 6
        toml = tmp_path / f"{layout}.toml"
        toml.write_text(f'corpus = "{layout}.jsonl"\nextract = ["dgcnn"]\n[extractors.dgcnn]\nk = 2\n')
        assert "too few" not in crossreel("corpus", "check", manifest, "--experiment", toml).out
        toml.write_text(toml.read_text().replace("k = 2", "k = 3"))
        checked = crossreel("corpus", "check", manifest, "--experiment", toml)
        assert checked.code == 3 and checked.out.count("error: room") == 6


def test_t3dr_hit_is_imported_reported_and_checked(tmp_path, crossreel):
    for split, names in (("train", [f"cup{n}" for n in range(11)]), ("test", ["vase", "tile", "ghost"])):
        for n, name in enumerate(names):
            file = tmp_path / f"data/Elephant/pcd_normalize_{split}/{name}/model.txt"
            file.parent.mkdir(parents=True)
            file.write_text(ROW % (n + 100 * (split == "test")))
        said = {name: [f"this is {name}"] for name in names if name != "tile"} | (
            {"tile": []} if n < 9 else {}
        )
        (tmp_path / f"data/Elephant/Elephant_caption_{split}.json").write_text(json.dumps({"result": said}))
    file.unlink()
    manifest = tmp_path / "c.jsonl"
    ended = crossreel(
        "corpus", "import", "t3dr-hit", tmp_path / "data", "--subset", "elephant", "-o", manifest
    )
    assert ended.code == 3, ended.err
    corpus = Corpus.read(manifest)
    assert ended.out.splitlines() == [
        f"{manifest}: 13 items (train 10, val 1, test 2), 12 captions",
        "protocol: T3DR-HIT v2 elephant: train and test as its caption files give them, a caption is one sentence; "
        "validated on 1 training objects held out by a digest of their names; 1 of 14 objects are skipped",
        *(f"{split}: {queries} queries, gallery {items}, digest {corpus.split_digest(split)}"
          for split, queries, items in (("train", 10, 10), ("val", 1, 1), ("test", 1, 2))),
        f"left out: ghost: there is no pcd_normalize_test/ghost/model.txt in {tmp_path}/data/Elephant; it is skipped "
        "with its 1 captions",
    ]  # fmt: skip
    assert "13 items, 0 errors" in crossreel("corpus", "check", manifest).out


@pytest.mark.parametrize("layout", ["folder", "csv"])
def test_media_of_both_kinds_become_one_manifest(tmp_path, crossreel, layout):
    source = tmp_path / "media"
    source.mkdir()
    for name in ("a.mp4", "b.ply", "c.obj"):
        (source / name).write_bytes(name.encode())
        (source / name).with_suffix(".txt").write_text(f"about {name}\n")
    if layout == "csv":
        source = source / "table.csv"
        source.write_text("file,caption\na.mp4,about a\nb.ply,about b\nc.obj,about c\n")
    manifest = tmp_path / "c.jsonl"
    ended = crossreel("corpus", "import", layout, source, "--kind", "both", "-o", manifest)
    assert ended.code == 0, ended.err
    kinds = {item.id: item.kind for item in Corpus.read(manifest).items}
    assert kinds == {"a": "video", "b": "pointcloud", "c": "pointcloud"}


def test_a_folder_of_videos_says_how_its_clouds_are_imported_too(tmp_path, crossreel):
    (tmp_path / "media").mkdir()
    for name in ("a.mp4", "b.ply"):
        (tmp_path / "media" / name).write_bytes(name.encode())
        (tmp_path / "media" / name).with_suffix(".txt").write_text("a caption\n")
    ended = crossreel("corpus", "import", "folder", tmp_path / "media", "-o", tmp_path / "c.jsonl")
    assert ended.code == 3
    assert "b.ply: .ply is no video's suffix, though captions are beside it; --kind both imports" in ended.out
