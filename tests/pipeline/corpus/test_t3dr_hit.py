"""T3DR-HIT: both subsets in the layout of their publishers, and what is left out is named and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.importers.published import Choice
from pipeline.corpus.importers.t3dr_hit import read_t3dr_hit
from pipeline.corpus.importers.table import Imported
from pipeline.corpus.manifest import Corpus, write_manifest
from pipeline.errors import UserError

GOLDEN = Path(__file__).parents[4] / "shared/golden/h2arn/pipeline_a/data"
POINTS = "0.1 0.2 0.3 1 2 3 4\n" * 5


def lay(folder: Path, subset: str, captions: dict[str, dict[str, Any]], **points: str) -> Path:
    """A data set with these captions by split and name; each object has points unless `points` says others."""
    inside = folder / ("Elephant" if subset == "elephant" else "S3DIS")
    for split, said in captions.items():
        if subset == "elephant":
            path, clouds = inside / f"Elephant_caption_{split}.json", f"pcd_normalize_{split}/%s/model.txt"
        else:
            path, clouds = inside / f"S3DIS_{split}_captions.json", f"S3DIS_{split}_pcds/%s.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"result": said}), encoding="utf-8")
        for name in said:
            text = points.get(name, POINTS)
            if text and ".." not in name:
                file = inside / (clouds % name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
    return folder


def take(folder: Path, subset: str, **chosen: Any) -> tuple[Imported, Corpus]:
    found = read_t3dr_hit(subset, folder, folder.parent, Choice(**chosen))
    write_manifest(folder.parent / "corpus.jsonl", found.items, found.protocol)
    corpus = Corpus.read(folder.parent / "corpus.jsonl")
    assert list(corpus.items) == found.items and {item.kind for item in corpus.items} == {"pointcloud"}
    for item in corpus.items:
        path = corpus.media_path(item)
        assert path is None or path.is_file()
    return found, corpus


def texts(corpus: Corpus, split: str) -> list[tuple[str, str]]:
    return [(item.id, caption.text) for item, caption in corpus.captions(split)]


TRAIN = {f"cup_{n:02}": [f"a cup {n}", "made of clay"] for n in range(20)}
TEST = {"vase": ["a vase"], "tile": []}


@pytest.mark.parametrize("subset", ["elephant", "s3dis"])
def test_train_and_test_are_as_the_files_say_and_val_is_held_out_of_train(subset, tmp_path):
    def named(said: dict[str, Any]) -> dict[str, Any]:
        return (
            said
            if subset == "elephant"
            else {f"Area_{n % 6 + 1}_{k}": v for n, (k, v) in enumerate(said.items())}
        )

    folder = lay(tmp_path / "data", subset, {"train": named(TRAIN), "test": named(TEST)})
    found, corpus = take(folder, subset)
    assert [len(corpus.gallery(split)) for split in ("train", "val", "test")] == [18, 2, 2]
    assert found.left_out == [] and [item.id for item in corpus.items] == [*named(TRAIN), *named(TEST)]
    assert texts(corpus, "test") == [(next(iter(named(TEST))), "a vase")]
    assert found.protocol and found.protocol.name == f"T3DR-HIT v2 {subset}"
    assert "validated on 2 training objects held out by a digest of their names" in found.protocol.sentence
    assert corpus.protocol("test") is not None
    assert {item.meta.get("area") for item in corpus.items} == (
        {None} if subset == "elephant" else {1, 2, 3, 4, 5, 6}
    )
    alone, _ = take(
        folder / ("Elephant" if subset == "elephant" else "S3DIS"), subset
    )  # its own folder does as well
    assert [item.id for item in alone.items] == [item.id for item in found.items]


def test_validation_is_chosen_as_in_every_public_corpus(tmp_path):
    folder = lay(tmp_path / "data", "elephant", {"train": TRAIN, "test": TEST})
    found, corpus = take(folder, "elephant", val="papers")
    assert [c.text for _, c in corpus.captions("val")] == ["a vase"] and len(corpus.gallery("train")) == 20
    assert found.protocol and "validated on the test split, as the papers do" in found.protocol.sentence
    assert found.notes == ["1 objects without captions are in the gallery of test, not of val"]
    _, three = take(folder, "elephant", val="3")
    _, five = take(folder, "elephant", val="5")
    held = [{item.id for item in corpus.gallery("val")} for corpus in (three, five)]
    assert held[0] < held[1] and len(held[1]) == 5
    found, corpus = take(folder, "elephant", val="0")
    assert (
        corpus.splits == ["train", "test"] and found.protocol and "validated" not in found.protocol.sentence
    )
    with pytest.raises(
        UserError, match="--val x: possible are papers and a number of the 20 training objects"
    ):
        take(folder, "elephant", val="x")


def test_one_of_a_few_objects_is_held_out_and_one_without_captions_never(tmp_path):
    said = {"a": ["x"], "b": ["y"], "mute": []}
    _, corpus = take(lay(tmp_path / "data", "elephant", {"train": said, "test": TEST}), "elephant")
    assert len(corpus.gallery("val")) == 1 and "mute" in {item.id for item in corpus.gallery("train")}


def test_one_split_is_imported_alone(tmp_path):
    folder = lay(tmp_path / "data", "elephant", {"train": TRAIN, "test": TEST})
    found, corpus = take(folder, "elephant", splits=("test",))
    assert [item.id for item in corpus.items] == ["vase", "tile"]
    assert found.protocol and "imported: test alone" in found.protocol.sentence
    _, corpus = take(folder, "elephant", splits=("val",))
    assert corpus.splits == ["val"] and len(corpus.items) == 2
    _, corpus = take(folder, "elephant", splits=("val",), val="papers")
    assert texts(corpus, "val") == [("vase", "a vase")]


def test_what_cannot_be_used_is_skipped_named_and_counted(tmp_path):
    said = {"good": ["fine", "", " ", 5], "gone": ["x", "y"], "narrow": ["x"], "empty": [], "../out": ["x"],
            "list": "no list", "mute": []}  # fmt: skip
    folder = lay(tmp_path / "data", "elephant", {"train": {"b": ["b"]}, "test": said},
                 gone="", narrow="x y z r g\n1 2 3 4 5\n", empty="\n")  # fmt: skip
    found, corpus = take(folder, "elephant", val="0")
    assert [item.id for item in corpus.gallery("test")] == ["good", "list", "mute"]
    assert texts(corpus, "test") == [("good", "fine")]
    inside = folder / "Elephant"
    assert found.left_out == [
        "Elephant_caption_test.json, good: a caption is empty",
        "Elephant_caption_test.json, good: a caption is empty",
        "Elephant_caption_test.json, good: a caption is no text but int",
        f"gone: there is no pcd_normalize_test/gone/model.txt in {inside}; it is skipped with its 2 captions",
        "narrow: pcd_normalize_test/narrow/model.txt has 5 columns, x y z r g b needs 6; it is skipped with its 1 "
        "captions",
        "empty: pcd_normalize_test/empty/model.txt has 0 columns, x y z r g b needs 6; it is skipped with its 0 "
        "captions",
        "../out: that is not the name of an object; it is skipped with its 1 captions",
        "Elephant_caption_test.json, list: its captions are no list",
    ]
    assert found.protocol and found.protocol.sentence.endswith(
        "4 of 8 objects are skipped; 2 empty captions are dropped"
    )


def test_a_room_without_an_area_is_skipped(tmp_path):
    said = {"Area_1_office_1": ["a"], "kitchen": ["b"]}
    found, _ = take(lay(tmp_path / "data", "s3dis", {"train": said, "test": {"Area_5_x": ["c"]}}), "s3dis")
    assert [line.partition(";")[0] for line in found.left_out] == [
        "kitchen: its name has no area number (Area_1_office_1), which decides the encoder's weights"
    ]


def test_a_name_of_train_and_test_is_two_objects(tmp_path):
    folder = lay(tmp_path / "data", "elephant", {"train": {"a": ["x"], "b": ["y"]}, "test": {"a": ["z"]}})
    found, corpus = take(folder, "elephant", val="0")
    assert texts(corpus, "test") == [("a@test", "z")]
    assert [c.id for _, c in corpus.captions("test")] == ["a@test#0"]
    assert found.notes == ["a@test: an object of train is called a too"]


def test_captions_alone_make_items_that_differ(tmp_path):
    folder = lay(
        tmp_path / "data", "elephant", {"train": TRAIN, "test": TEST | {"cup_00": ["again"]}}, cup_00=""
    )
    found, corpus = take(folder, "elephant", no_media=True)
    assert found.left_out == [] and len({item.digest for item in corpus.items}) == 23
    (folder / "x").mkdir()
    with pytest.raises(UserError, match=r"gives no captions of T3DR-HIT elephant; cup_00: there is no pcd"):
        take(folder, "elephant", media=folder / "x")


@pytest.mark.parametrize(
    ("subset", "chosen", "words"),
    [
        ("", {}, "t3dr-hit needs --subset; possible: elephant, s3dis"),
        ("elefant", {}, "--subset elefant; did you mean 'elephant'?"),
        ("elephant", {"splits": ("tset",)}, "T3DR-HIT has no split 'tset'; did you mean 'test'?"),
        ("s3dis", {}, "the split train: there is no S3DIS_train_captions.json in"),
    ],
)
def test_a_mistake_is_one_sentence(subset, chosen, words, tmp_path):
    with pytest.raises(UserError) as raised:
        take(lay(tmp_path / "data", "elephant", {"train": TRAIN}), subset, **chosen)
    assert words in str(raised.value)


@pytest.mark.parametrize("text", ["[]", '{"result": []}', '{"captions": {}}'])
def test_a_caption_file_of_another_form_is_one_sentence(text, tmp_path):
    folder = lay(tmp_path / "data", "elephant", {"train": TRAIN, "test": TEST})
    (folder / "Elephant/Elephant_caption_test.json").write_text(text)
    with pytest.raises(UserError, match=r'is not of the form \{"result": \{name:'):
        take(folder, "elephant")


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the folder {GOLDEN} is not there")
def test_the_published_layout_is_read_as_its_scripts_read_it(tmp_path):
    (tmp_path / "data").symlink_to(GOLDEN)
    _, corpus = take(tmp_path / "data", "elephant", val="0")
    assert [item.id for item in corpus.items] == ["vase_07", "cup_01", "tile", "bell_3", "dish_2", "pot_9"]
    assert [len(item.captions) for item in corpus.items] == [3, 1, 0, 1, 2, 1]
    _, corpus = take(tmp_path / "data", "s3dis", val="0")
    assert {item.id: item.meta["area"] for item in corpus.items} == {
        "Area_1_office_1": 1, "Area_5_hallway_2": 5, "Area_3_lobby_1": 3, "Area_5_office_9": 5,
    }  # fmt: skip
