"""An import over an earlier manifest: splits are kept, and none moves unasked."""

from __future__ import annotations

import pytest

from pipeline.corpus.importers.earlier import Earlier, keep_splits, require_unmoved
from pipeline.corpus.importers.table import Imported
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.errors import UserError


def item(name: str, split: str, *captions: Caption, media: str = "") -> Item:
    return Item(name, split, captions or (Caption(f"{name}#0", f"{name} said"),), media or f"{name}.mp4")


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "corpus.jsonl"
    lent = (Caption("c#0", "own"), Caption("c#1", "lent", split="test"))
    write_manifest(
        path, [item("a", "train"), item("b", "test"), item("c", "train", *lent), item("gone", "val")]
    )
    return path


def test_items_keep_their_split_by_id_or_by_media_and_new_ones_their_own(manifest, tmp_path):
    new = [
        item("a", "val"), item("b.mp4", "train", media="b.mp4"), item("new", "val"),
        item("c", "test", Caption("c#0", "lent"), Caption("c#1", "own"), Caption("c#2", "more")),
    ]  # fmt: skip
    found = keep_splits(Imported(new, dealt=4), Earlier.read(manifest), tmp_path)
    assert [(i.id, i.split) for i in found.items] == [
        ("a", "train"), ("b.mp4", "test"), ("new", "val"), ("c", "train"),
    ]  # fmt: skip
    assert [caption.split for caption in found.items[3].captions] == ["test", None, None]
    assert found.dealt == 1 and found.notes == [
        f"3 items keep their split of {manifest}, 1 are new",
        "3 of them would be in another split by the source or the ratio: a, b.mp4, c",
        f"1 items of {manifest} are not in the source",
    ]
    require_unmoved(found.items, Earlier.read(manifest), tmp_path)


def test_an_import_that_moves_items_is_refused_with_their_number(manifest, tmp_path):
    earlier = Earlier.at(manifest)
    assert earlier is not None
    moved = [item("a", "test"), item("x", "val", media="b.mp4"), item("other", "train")]
    with pytest.raises(UserError) as raised:
        require_unmoved(moved, earlier, tmp_path)
    words = str(raised.value)
    assert (
        "2 of its 4 items would move to another split (1 from train to test, 1 from test to val; a, x)"
        in words
    )
    assert f"--keep-splits {manifest}" in words and "--move-splits" in words


def test_a_caption_that_changes_its_split_moves_its_item(manifest, tmp_path):
    earlier = Earlier.read(manifest)
    with pytest.raises(UserError, match=r"1 of its 4 items .*\(1 from test to train; c\)"):
        require_unmoved([item("c", "train", Caption("c#9", "lent"))], earlier, tmp_path)
    require_unmoved([item("c", "train", Caption("c#9", "new"), Caption("c#1", "own"))], earlier, tmp_path)


def test_what_is_no_manifest_is_not_overwritten(tmp_path):
    path = tmp_path / "captions.csv"
    assert Earlier.at(path) is None
    path.touch()
    assert Earlier.at(path) is None
    path.write_text("video,caption\n")
    with pytest.raises(UserError, match="is there already and is no corpus manifest"):
        Earlier.at(path)


def test_the_lines_that_can_be_read_of_a_damaged_manifest_count(manifest, tmp_path):
    with manifest.open("a") as file:
        file.write("{half a line")
    earlier = Earlier.at(manifest)
    assert earlier is not None and len(earlier.items) == 4
    with pytest.raises(UserError, match="would move"):
        require_unmoved([item("a", "test")], earlier, tmp_path)
