"""H2ARN's published feature files: what their rows become, what is refused, and our own in their layout."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.corpus.contents import read_contents
from pipeline.corpus.manifest import Caption, Corpus, Item, write_manifest
from pipeline.errors import UserError
from pipeline.features.exporting import Output
from pipeline.features.importing import ImportReport, import_h2arn
from pipeline.features.layouts.feature_files import Entry
from pipeline.features.layouts.h2arn_files import H2arnFiles, export_h2arn
from pipeline.store.store import Store

TEXT_SHAPE, CLOUD_SHAPE = (5, 6), (4, 3)
LINKS = {"train": [(0, 0), (1, 0), (2, 1), (2, 3), (4, 3), (4, 3)], "test": [(0, 1), (1, 0)]}
ROWS = {"train": (5, 4), "test": (2, 2)}  # texts, clouds: text 3 belongs to none, cloud 2 has no text


def write(path: Path, array: np.ndarray) -> None:
    """Stands for torch.save: this floor knows no torch."""
    with path.open("wb") as file:
        np.save(file, np.asarray(array))


def read(path: Path, stack: ExitStack) -> dict[str, Entry]:
    """Stands for the reader of .pt files."""
    array = np.load(path)
    return {"": Entry(array.shape, array.dtype, lambda: array)}


def published(folder: Path, subset: str = "Elephant", texts: str = "CLIP", clouds: str = "DGCNN") -> Path:
    """A folder as the authors' scripts leave it."""
    rng = np.random.default_rng(len(subset) + len(texts))
    for split, links in LINKS.items():
        place = folder / "feature" / subset / split
        place.mkdir(parents=True, exist_ok=True)
        sides = ((f"txt_features_{texts}.pt", TEXT_SHAPE), (f"pc_features_{clouds}.pt", CLOUD_SHAPE))
        for (name, shape), count in zip(sides, ROWS[split], strict=True):
            write(place / name, rng.normal(size=(count, *shape)).astype(np.float32))
        (folder / "save").mkdir(exist_ok=True)
        entries = [[["a.pt", text], ["b.pt", cloud]] for text, cloud in links]
        (folder / f"save/{subset}_link_{split}.json").write_text(json.dumps(entries))
    return folder


def source_of(folder: Path, name: str, split: str = "train", subset: str = "Elephant") -> np.ndarray:
    found: np.ndarray = np.load(folder / "feature" / subset / split / f"{name}.pt")
    return found


def imported(folder: Path, work: Path, **chosen: Any) -> ImportReport:
    return import_h2arn(Store(work / "store"), H2arnFiles.open(folder, read, **chosen), work / "corpus.jsonl")


def output(work: Path, stage: str, field: str = "row") -> Output:
    store = Store(work / "store")
    (fp,) = store.index.fingerprints(stage)
    return Output(stage, field, store.reader(stage, fp))


def exported(work: Path, report: ImportReport, target: Path) -> Any:
    contents = read_contents(Corpus.read(work / "corpus.jsonl"), Store(work / "store").index)
    outputs = (output(work, stage) for stage in (report.video_stage, report.text_stage))
    return export_h2arn(target, contents, "Elephant", *outputs, write)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return published(tmp_path / "theirs")


def test_every_row_becomes_the_item_or_caption_that_the_links_say(folder, tmp_path):
    report = imported(folder, tmp_path)
    assert (report.video_stage, report.text_stage) == ("import-elephant-dgcnn", "import-elephant-clip")
    assert (report.items, report.captions, report.unlinked, report.failed) == (6, 6, 1, {})
    corpus = Corpus.read(tmp_path / "corpus.jsonl")
    assert {item.kind for item in corpus.items} == {"pointcloud"}
    told = {item.id: [(caption.id, caption.also) for caption in item.captions] for item in corpus.items}
    assert told == {
        "train/0": [("train/text/0", ()), ("train/text/1", ())],
        "train/1": [("train/text/2", ("train/3",))],
        "train/2": [],
        "train/3": [("train/text/4", ())],
        "test/0": [("test/text/1", ())],
        "test/1": [("test/text/0", ())],
    }
    clouds, texts = output(tmp_path, report.video_stage), output(tmp_path, report.text_stage)
    for item in corpus.items:
        split, row = item.id.split("/")
        wanted = source_of(folder, "pc_features_DGCNN", split)[int(row)]
        np.testing.assert_array_equal(clouds.reader.rows(item.digest, "row"), wanted)
        for caption in item.captions:
            wanted = source_of(folder, "txt_features_CLIP", split)[int(caption.id.split("/")[-1])]
            np.testing.assert_array_equal(texts.reader.rows(caption.digest, "row"), wanted)
            assert "not published" in caption.text


def test_other_features_of_the_same_rows_are_of_the_same_corpus(folder, tmp_path):
    published(folder, texts="BERT")
    one = imported(folder, tmp_path, texts="clip")
    manifest = (tmp_path / "corpus.jsonl").read_text()
    two = imported(folder, tmp_path, texts="BERT")
    assert (tmp_path / "corpus.jsonl").read_text() == manifest
    assert one.text_stage == "import-elephant-clip" and two.text_stage == "import-elephant-bert"
    keys = {caption.digest for _, caption in Corpus.read(tmp_path / "corpus.jsonl").captions("train")}
    assert all(
        key in output(tmp_path, stage).reader for stage in (one.text_stage, two.text_stage) for key in keys
    )


def test_two_subsets_in_one_store_are_other_items(folder, tmp_path):
    published(folder, "S3DIS")
    digests = []
    for subset in ("Elephant", "s3dis"):
        report = imported(folder, tmp_path, subset=subset)
        assert report.video_stage == f"import-{subset.lower()}-dgcnn"
        digests.append({item.digest for item in Corpus.read(tmp_path / "corpus.jsonl").items})
    assert not digests[0] & digests[1]


def test_rows_that_are_no_numbers_are_reported_by_name_and_the_others_come_in(folder, tmp_path):
    array = source_of(folder, "pc_features_DGCNN")
    array[2, 1, 0] = np.nan
    write(folder / "feature/Elephant/train/pc_features_DGCNN.pt", array)
    report = imported(folder, tmp_path)
    assert report.failed == {"train/2": "it holds NaN or infinity"}
    assert len(output(tmp_path, report.video_stage).reader.where) == 5


def test_several_subsets_or_features_have_to_be_named(folder, tmp_path):
    def refused(**chosen: str) -> str:
        with pytest.raises(UserError) as error:
            H2arnFiles.open(folder, read, **chosen)
        return str(error.value)

    published(folder, "S3DIS")
    assert "has several of subset, Elephant and S3DIS; name one with --subset" in refused()
    assert "has no subset called 'Elefant'; did you mean 'Elephant'" in refused(subset="Elefant")
    published(folder, texts="BERT", clouds="pointnet++")
    assert "several of txt_features_NAME.pt, BERT and CLIP; name one with --text-file" in refused(
        subset="Elephant"
    )
    said = refused(subset="Elephant", texts="BERT")
    assert "several of pc_features_NAME.pt, DGCNN and pointnet++; name one with --visual-feature" in said
    files = H2arnFiles.open(folder, read, "elephant", "BERT", "pointnet++")
    report = import_h2arn(Store(tmp_path / "store"), files, tmp_path / "c.jsonl")
    assert report.video_stage == "import-elephant-pointnet2"  # pointnet is another


def broken(folder: Path, change: str) -> None:
    """Make a published folder wrong in one way."""
    place, links = folder / "feature/Elephant/train", folder / "save/Elephant_link_train.json"
    texts, clouds = place / "txt_features_CLIP.pt", place / "pc_features_DGCNN.pt"
    actions = {
        "no links": lambda: [path.unlink() for path in (folder / "save").iterdir()],
        "no features": clouds.unlink,
        "no folder": lambda: place.rename(folder / "feature/Elephant/valid"),
        "flat": lambda: write(texts, np.ones((4, 6), np.float32)),
        "whole numbers": lambda: write(texts, np.ones((5, 5, 6), int)),
        "other width": lambda: write(clouds, np.ones((4, 4, 7), np.float32)),
        "damaged": lambda: texts.write_bytes(b"nothing of the kind"),
        "row": lambda: links.write_text('[[["a", 0], ["b", 4]]]'),
        "negative": lambda: links.write_text('[[["a", -1], ["b", 0]]]'),
        "truth": lambda: links.write_text('[[["a", true], ["b", 0]]]'),
        "form": lambda: links.write_text('[["a", 0, "b"]]'),
        "not json": lambda: links.write_text("nothing"),
        "object": lambda: links.write_text("{}"),
        "empty": lambda: links.write_text("[]"),
    }
    actions[change]()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no links", "is no folder of H2ARN's: it holds no save/<subset>_link_<split>.json"),
        ("no features", r"there is no .*train/pc_features_<name>\.pt"),
        ("no folder", r"there is no .*feature/Elephant/train, though Elephant_link_train\.json is"),
        ("flat", r"holds float32 of the shape \(4, 6\); numbers of \(rows, tokens, numbers\)"),
        ("whole numbers", "holds int64 of the shape"),
        ("other width", r"test/pc_features_DGCNN\.pt|has tokens of 3 numbers, .* of 7"),
        ("damaged", r"txt_features_CLIP\.pt cannot be read"),
        ("row", r"entry 0 .*: there is no cloud 4, the rows are 0 to 3"),
        ("negative", "there is no text -1, the rows are 0 to 4"),
        ("truth", "there is no text True"),
        ("form", r"entry 0 .*: it is not \[\[file, text row\], \[file, cloud row\]\]"),
        ("not json", "is not a link list in JSON"),
        ("object", "is not a link list: it holds a dict"),
        ("empty", "holds no links, so no text belongs to any cloud"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_sentence_and_nothing_comes_in(folder, tmp_path, change, said):
    broken(folder, change)
    with pytest.raises(UserError, match=said):
        imported(folder, tmp_path)
    assert not (tmp_path / "corpus.jsonl").exists()


def linked_rows(folder: Path, split: str, subset: str = "Elephant") -> list[tuple[bytes, bytes]]:
    """The values of each linked text with those of its cloud, in the order of the list."""
    entries = json.loads((folder / f"save/{subset}_link_{split}.json").read_text())
    texts, clouds = (
        source_of(folder, name, split, subset) for name in ("txt_features_CLIP", "pc_features_DGCNN")
    )
    return [(texts[text].tobytes(), clouds[cloud].tobytes()) for (_, text), (_, cloud) in entries]


def test_what_came_in_goes_out_again_with_the_same_values_and_links(folder, tmp_path):
    report = imported(folder, tmp_path)
    told = exported(tmp_path, report, tmp_path / "ours")
    assert (told.videos, told.captions, told.rows, told.left_out) == (6, 6, 24, {})
    for split in LINKS:
        theirs, ours = (source_of(f, "pc_features_DGCNN", split) for f in (folder, tmp_path / "ours"))
        assert ours.dtype == np.float32 and ours.tobytes() == theirs.tobytes()
        assert sorted(set(linked_rows(folder, split))) == sorted(linked_rows(tmp_path / "ours", split))
    assert not list((tmp_path / "ours").rglob(".*"))


def test_going_out_and_in_again_changes_nothing_at_all(folder, tmp_path):
    exported(tmp_path, imported(folder, tmp_path), tmp_path / "ours")
    (tmp_path / "again").mkdir()
    exported(tmp_path / "again", imported(tmp_path / "ours", tmp_path / "again"), tmp_path / "twice")
    files = sorted(path.relative_to(tmp_path / "ours") for path in (tmp_path / "ours").rglob("*.*"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


def test_items_and_captions_without_features_are_left_out_by_name(folder, tmp_path):
    array = source_of(folder, "pc_features_DGCNN")
    array[0] = np.nan  # texts 0 and 1 belong to it alone
    write(folder / "feature/Elephant/train/pc_features_DGCNN.pt", array)
    texts = source_of(folder, "txt_features_CLIP")
    texts[4] = np.nan
    write(folder / "feature/Elephant/train/txt_features_CLIP.pt", texts)
    told = exported(tmp_path, imported(folder, tmp_path), tmp_path / "ours")
    assert told.left_out == {
        "train/0": "it has no features of import-elephant-dgcnn",
        "train/text/4": "it has no features of import-elephant-clip",
    }
    assert len(source_of(tmp_path / "ours", "txt_features_CLIP")) == 1
    assert len(linked_rows(tmp_path / "ours", "train")) == 2  # text 2 describes two clouds


def test_features_of_different_lengths_are_refused_with_what_to_set(folder, tmp_path):
    report = imported(folder, tmp_path)
    items = [
        Item("a", "train", (Caption("a#0", "x", digest="k1"), Caption("a#1", "y", digest="k2")), digest="k0")
    ]
    write_manifest(tmp_path / "corpus.jsonl", items)
    contents = read_contents(Corpus.read(tmp_path / "corpus.jsonl"), Store(tmp_path / "store").index)

    class Ragged:
        where = ("k0", "k1", "k2")

        def __contains__(self, key: str) -> bool:
            return key in self.where

        def rows(self, key: str, field: str, check: bool) -> np.ndarray:
            return np.ones((3 + self.where.index(key), 2), np.float32)

    ragged: Any = Ragged()
    with pytest.raises(
        UserError, match=r"'token' of clip_text has the shape \(5, 2\) for a#1, \(4, 2\) for the"
    ):
        export_h2arn(
            tmp_path / "x", contents, "mine", Output("dgcnn", "token", ragged), Output("clip_text", "token", ragged),
            write,
        )  # fmt: skip
    nobody = Output(report.text_stage, "row", output(tmp_path, report.text_stage).reader)
    with pytest.raises(
        UserError, match="no caption has features of import-elephant-clip and its item of dgcnn"
    ):
        export_h2arn(tmp_path / "y", contents, "mine", Output("dgcnn", "token", ragged), nobody, write)


def held(folder: Path, work: Path, val: str) -> tuple[ImportReport, Corpus]:
    files = H2arnFiles.open(folder, read)
    report = import_h2arn(Store(work / "store"), files, work / "corpus.jsonl", val=val)
    return report, Corpus.read(work / "corpus.jsonl")


def test_training_clouds_that_share_no_text_can_be_held_out_for_validation(folder, tmp_path):
    links = [(0, 0), (1, 1), (2, 1), (2, 3), (4, 2)]
    entries = [[["a.pt", text], ["b.pt", cloud]] for text, cloud in links]
    (folder / "save/Elephant_link_train.json").write_text(json.dumps(entries))
    report, corpus = held(folder, tmp_path, "")
    chosen = [item.id for item in corpus.items if item.split == "val"]
    assert chosen in (["train/0"], ["train/2"])  # 1 and 3 share text 2
    assert report.validated == "validated on 1 training clouds held out by a digest of their rows"
    assert corpus.protocol("val")["sentence"].endswith(report.validated)
    none, corpus = held(folder, tmp_path, "0")
    assert none.validated == "" and corpus.splits == ["train", "test"]
    with pytest.raises(UserError, match="--val 2: possible are papers and a number of the 2 training clouds"):
        held(folder, tmp_path, "2")


def test_the_papers_validate_on_the_test_split_and_it_goes_out_once(folder, tmp_path):
    links = [[["a.pt", 0], ["b.pt", 0]], [["a.pt", 1], ["b.pt", 0]], [["a.pt", 1], ["b.pt", 1]]]
    (folder / "save/Elephant_link_test.json").write_text(json.dumps(links))
    report, corpus = held(folder, tmp_path, "papers")
    assert report.validated == "validated on the test split, as the papers do" and report.captions == 6
    told = {caption.id: caption.also for _, caption in corpus.captions("val")}
    assert told == {"test/text/0@val": (), "test/text/1@val": ()}  # cloud 1 lends no text, so val lacks it
    assert [item.id for item in corpus.gallery("val")] == ["test/0"]
    exported(tmp_path, report, tmp_path / "ours")
    assert {path.name for path in (tmp_path / "ours/feature/Elephant").iterdir()} == {"train", "test"}


def test_a_validation_split_of_their_own_is_taken(folder, tmp_path):
    place = folder / "feature/Elephant"
    (place / "val").mkdir()
    for path in (place / "test").iterdir():
        (place / "val" / path.name).write_bytes(path.read_bytes())
    (folder / "save/Elephant_link_val.json").write_text((folder / "save/Elephant_link_test.json").read_text())
    _, corpus = held(folder, tmp_path, "")
    assert [item.id for item in corpus.gallery("val")] == ["val/0", "val/1"]
    with pytest.raises(UserError, match="--val papers: the features have a validation split of their own"):
        held(folder, tmp_path, "papers")
