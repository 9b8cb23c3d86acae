"""A folder of media with captions beside them, as a manifest that is always valid."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.corpus.importers.folder import read_folder
from pipeline.corpus.importers.table import Imported
from pipeline.corpus.manifest import Corpus, write_manifest
from pipeline.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def add(folder: Path, name: str, captions: object = "a caption") -> None:
    media = folder / name
    media.parent.mkdir(parents=True, exist_ok=True)
    media.write_bytes(name.encode("utf-8", "surrogateescape"))
    if isinstance(captions, str):
        media.with_suffix(".txt").write_text(captions, encoding="utf-8")
    elif captions is not None:
        media.with_suffix(".json").write_text(json.dumps(captions))


def read(folder: Path, kind: str = "video") -> Imported:
    found = read_folder(folder, folder.parent, kind)
    write_manifest(folder.parent / "corpus.jsonl", found.items)
    corpus = Corpus.read(folder.parent / "corpus.jsonl")
    assert list(corpus.items) == found.items
    assert all((corpus.media_path(item) or Path()).is_file() for item in corpus.items)
    return found


def test_each_line_beside_a_video_is_a_caption(folder):
    add(folder, "b/c.mkv", "one\n\n  two \n")
    add(folder, "a.MP4", "\ufeffthree")
    (folder / "notes.txt").write_text("no video")
    found = read(folder)
    assert [(i.id, [c.text for c in i.captions], i.media) for i in found.items] == [
        ("a", ["three"], "data/a.MP4"), ("b/c", ["one", "two"], "data/b/c.mkv"),
    ]  # fmt: skip
    assert found.left_out == []


def test_moments_come_from_json(folder):
    add(folder, "a.mp4", {"captions": ["plain", {"text": "moment", "start": 1, "end": 2.5}]})
    (item,) = read(folder).items
    assert [(c.text, c.start, c.end) for c in item.captions] == [("plain", None, None), ("moment", 1, 2.5)]


def test_a_first_folder_named_like_a_split_is_the_split(folder):
    for split in ("train", "val", "test"):
        add(folder, f"{split}/deep/a.mp4")
    assert {item.split: item.id for item in read(folder).items} == {
        s: f"{s}/deep/a" for s in ("train", "val", "test")
    }


def test_two_kinds_of_one_name_are_distinguished(folder):
    add(folder, "a.mp4", "x")
    add(folder, "a.mkv", None)
    found = read(folder)
    assert sorted(item.id for item in found.items) == ["a.mkv", "a.mp4"]


def test_what_has_no_usable_captions_is_left_out_with_its_reason(folder):
    add(folder, "good.mp4")
    add(folder, "none.mp4", None)
    add(folder, "blank.mp4", " \n")
    add(folder, "list.mp4", {"captions": 5})
    add(folder, "empty.mp4", [""])
    add(folder, "time.mp4", [{"text": "x", "start": "soon"}])
    add(folder, "object.mp4", [{"words": "x"}])
    add(folder, "broken.mp4", None)
    (folder / "broken.json").write_text("{")
    add(folder, "bytes.mp4", None)
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    found = read(folder)
    assert [item.id for item in found.items] == ["good"]
    reasons = dict(line.split(": ", 1) for line in found.left_out)
    assert set(reasons) == {
        f"{n}.mp4" for n in ["none", "blank", "list", "empty", "time", "object", "broken", "bytes"]
    }
    assert reasons["none.mp4"] == "no captions beside it (none.txt or none.json)"
    assert reasons["list.mp4"] == "list.json holds no list of captions"
    assert "the time 'soon', which is not a number of seconds" in reasons["time.mp4"]


@pytest.mark.skipif(os.fsencode("é") != b"\xc3\xa9", reason="this system's file names are not UTF-8")
def test_a_name_that_is_no_text_is_left_out(folder):
    add(folder, "good.mp4")
    add(folder, os.fsdecode(b"caf\xe9.mp4"))
    found = read(folder)
    assert [item.id for item in found.items] == ["good"]
    assert found.left_out == [r"b'caf\xe9.mp4': its name is not UTF-8"]


def test_links_that_loop_and_folders_named_like_videos_do_no_harm(folder):
    add(folder, "folder.mp4/inside.mp4")
    (folder / "loop").symlink_to(folder)
    assert [item.id for item in read(folder).items] == ["folder.mp4/inside"]


def test_odd_names_are_kept(folder):
    names = ["-dash.mp4", "two  spaces.mp4", 'quote\'s "x".mp4', "new\nline.mp4", "ünï.mp4", ".hidden.mp4"]
    for name in names:
        add(folder, name)
    assert sorted(item.media or "" for item in read(folder).items) == sorted(f"data/{name}" for name in names)


def test_a_folder_without_videos_is_one_sentence(folder):
    with pytest.raises(UserError, match="holds no video with captions"):
        read_folder(folder, folder)
    with pytest.raises(UserError, match="is not a folder"):
        read_folder(folder / "none", folder)
    add(folder, "a.mp4", None)
    with pytest.raises(UserError, match=r"holds no video with captions; a\.mp4: no captions beside it"):
        read_folder(folder, folder)


def test_files_that_are_added_move_no_other_between_splits(folder):
    for n in range(40):
        add(folder, f"clip{n:02}.mp4")
    before = {item.id: item.split for item in read(folder).items}
    assert set(before.values()) == {"train", "val", "test"}
    add(folder, "aa.mp4")
    add(folder, "clip07.mkv")  # which makes the ids of both files longer
    after = {item.id: item.split for item in read(folder).items}
    assert {name: after[name] for name in before if name != "clip07"} == {
        name: split for name, split in before.items() if name != "clip07"
    }
    assert after["clip07.mp4"] == after["clip07.mkv"] == before["clip07"]


def test_first_folders_that_mean_a_split_are_it_and_what_stands_beside_them_is_reported(folder):
    for name in (
        "Training/a.mp4",
        "validation/b.mp4",
        "dev/c.mp4",
        "testing/d.mp4",
        "cooking/e.mp4",
        "dev.mp4",
    ):
        add(folder, name)
    found = read(folder)
    split = {item.id: item.split for item in found.items}
    assert [split[name] for name in ("Training/a", "validation/b", "dev/c", "testing/d")] == [
        "train", "val", "val", "test",
    ]  # fmt: skip
    assert found.notes == [
        "2 items are in no folder train, val, test and are dealt by a hash of their ids: dev, cooking/e"
    ]


@pytest.mark.parametrize(
    "suffix", [".3g2", ".m2ts", ".asf", ".vob", ".gif", ".DIVX", ".mxf", ".mod", ".rmvb"]
)
def test_every_container_of_videos_is_taken(folder, suffix):
    add(folder, f"a{suffix}")
    found = read(folder)
    assert [item.media for item in found.items] == [f"data/a{suffix}"] and found.left_out == found.notes == []


def test_a_file_of_another_suffix_with_captions_is_named_and_all_others_are_counted(folder):
    add(folder, "a.mp4")
    add(folder, "deep/b.xyzzy")
    add(folder, "c", None)
    for name in ("a.jpg", "d.jpg", "e.srt", "orphan.txt", "a.json"):
        (folder / name).write_text('["from JSON"]')
    found = read(folder)
    assert [item.captions[0].text for item in found.items] == ["from JSON"]
    assert found.left_out == [
        "deep/b.xyzzy: .xyzzy is no video's suffix, though captions are beside it",
    ]
    assert found.notes == [
        "2 texts are not read as captions: a.txt, orphan.txt", "not imported: 2 files of .jpg: a.jpg, d.jpg",
        "not imported: 1 files of .srt: e.srt", "not imported: 1 files of no suffix: c",
    ]  # fmt: skip


def test_captions_of_any_editor_are_read_and_what_is_no_text_is_named(folder):
    add(folder, "wide.mp4", None)
    (folder / "wide.txt").write_bytes("é one\r\ntwo\u2028half\r\n".encode("utf-16"))
    for name, data in {
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "page": b"<html><body>404</body></html>", "latin": b"one\ncaf\xe9\n", "null": b"one\na\0b\n",
    }.items():  # fmt: skip
        add(folder, f"{name}.mp4", None)
        (folder / f"{name}.txt").write_bytes(data)
    add(folder, "back.mp4", [{"text": "x", "start": 2, "end": 1}])
    found = read(folder)
    assert [[c.text for c in item.captions] for item in found.items] == [["é one", "two\u2028half"]]
    reasons = dict(line.split(": ", 1) for line in found.left_out)
    assert "pointer.txt cannot be read: it is a Git LFS pointer" in reasons["pointer.mp4"]
    assert "page.txt cannot be read: it is an HTML page" in reasons["page.mp4"]
    assert reasons["latin.mp4"].startswith("latin.txt, line 2: it is not UTF-8 (b'\\xe9')")
    assert reasons["null.mp4"] == "null.txt, line 2: it holds a NUL byte"
    assert reasons["back.mp4"] == "the caption 'x' ends at 1 s, before its start at 2 s"


# point clouds --------------------------------------------------------------------------------------


def put(folder: Path, name: str, text: str = "1 2 3 4 5 6") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def said(found: Imported) -> dict[str, list[str]]:
    assert {item.kind for item in found.items} == {"pointcloud"}
    return {item.id: [caption.text for caption in item.captions] for item in found.items}


def test_a_text_is_a_cloud_unless_its_name_or_its_neighbour_says_otherwise(folder):
    put(folder, "train/Area_1_office_1.txt")
    put(folder, "train/Area_1_office_1.captions.txt", "an office\n\nwith a desk\n")
    put(folder, "bunny.ply")
    put(folder, "bunny.txt", "a bunny")
    put(folder, "chair.OFF")
    put(folder, "chair.json", '["a chair"]')
    put(folder, "scan.npy")
    put(folder, "scan.txt", "not its captions, since these come first")
    put(folder, "scan.captions.txt", "a scan")
    put(folder, "clip.mp4", "no cloud")
    found = read(folder, "pointcloud")
    assert said(found) == {
        "bunny": ["a bunny"], "chair": ["a chair"], "scan": ["a scan"],
        "train/Area_1_office_1": ["an office", "with a desk"],
    }  # fmt: skip
    assert found.left_out == [] and [i.split for i in found.items if i.id.startswith("train")] == ["train"]


@pytest.mark.parametrize("under", [False, True])
def test_captions_of_many_clouds_stand_in_one_file(folder, under):
    for name in ("a.txt", "deep/b.xyz", "deep/c.pcd", "none.txt"):
        put(folder, name)
    put(folder, "deep/c.captions.txt", "its own")
    shared = {"a": ["one", "two"], "deep/b": ["by path"], "c": ["not its own"], "elsewhere": ["nobody's"]}
    put(folder, "captions.json", json.dumps({"result": shared} if under else shared))
    found = read(folder, "pointcloud")
    assert said(found) == {"a": ["one", "two"], "deep/b": ["by path"], "deep/c": ["its own"]}
    assert found.left_out == [
        "none.txt: no captions beside it (none.captions.txt or none.json; or captions.json of the folder)"
    ]


def test_a_cloud_whose_captions_are_none_stays_in_the_gallery(folder):
    for name in ("a.txt", "b.ply", "c.ply"):
        put(folder, name)
    put(folder, "captions.json", json.dumps({"a": ["a caption"], "b": []}))
    found = read(folder, "pointcloud")
    assert said(found) == {"a": ["a caption"], "b": []}
    assert found.left_out[0].startswith("c.ply: no captions beside it (c.captions.txt, c.txt or c.json;")


def test_shared_captions_that_are_wrong_are_one_sentence_and_a_wrong_entry_costs_one_cloud(folder):
    put(folder, "a.txt")
    put(folder, "b.txt")
    put(folder, "captions.json", json.dumps({"a": "no list", "b": ["b"]}))
    found = read(folder, "pointcloud")
    assert said(found) == {"b": ["b"]} and found.left_out == [
        "a.txt: captions.json holds no list of captions"
    ]
    for text, words in (("{", "cannot be read as JSON"), ("[]", "holds no object of captions by the names")):
        put(folder, "captions.json", text)
        with pytest.raises(UserError, match=words):
            read_folder(folder, folder, "pointcloud")


def test_a_folder_without_clouds_is_one_sentence(folder):
    add(folder, "a.mp4")
    with pytest.raises(UserError, match=r"holds no point cloud with captions; a\.txt: no captions beside it"):
        read_folder(folder, folder, "pointcloud")


def test_a_room_of_s3dis_is_one_cloud_and_its_objects_are_none(tmp_path):
    room = tmp_path / "Area_1/office_1"
    (room / "Annotations").mkdir(parents=True)
    for path in (room / "office_1.txt", room / "Annotations/chair_1.txt"):
        path.write_text("0 0 0 255 0 0\n1 1 1 0 255 0\n")
    (room / "office_1.captions.txt").write_text("an office\n")
    found = read_folder(tmp_path, tmp_path, "pointcloud")
    assert [item.id for item in found.items] == ["Area_1/office_1/office_1"] and not found.left_out


def test_objects_without_their_room_are_clouds(tmp_path):
    parts = tmp_path / "office_1/Annotations"
    parts.mkdir(parents=True)
    (parts / "chair_1.txt").write_text("0 0 0 255 0 0\n")
    (parts / "chair_1.captions.txt").write_text("a chair\n")
    assert [item.id for item in read_folder(tmp_path, tmp_path, "pointcloud").items] == [
        "office_1/Annotations/chair_1"
    ]
