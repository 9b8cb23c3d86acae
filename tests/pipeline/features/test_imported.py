"""Imported features: a stage that is there or not, found again in the store, and that nobody runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.contents import Contents, RememberedDigests, read_contents
from pipeline.corpus.manifest import Caption, Corpus, Item, digest_of_id, write_manifest
from pipeline.errors import UserError
from pipeline.features.imported import Imported, imported_stages
from pipeline.features.importing import NOT_THERE, FilesReport, import_files
from pipeline.features.layouts.feature_files import FeatureFiles
from pipeline.run.execute import Runner, RunOptions
from pipeline.run.plan import State, components, survey
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.imports import ImportedParams, has_imports
from pipeline.store.store import Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def stage(of: str = "items") -> Imported:
    return Imported(f"import-{of}", ImportedParams(layout="ms-sl", source="d", of=of, dims=3))  # type: ignore[arg-type]


def bring(store: Store, stage: Imported, *keys: str) -> None:
    fp = Fingerprint.of(components(stage, {}, RememberedDigests(store.index)))
    with store.writer(stage.name, fp, stage.fields) as writer:
        for key in keys:
            writer.append(key, key, {"row": np.ones((2, 3))})
        items, path = dict(writer.items), writer.finish()
    assert path is not None
    store.index.add_fingerprint(fp.hex, stage.name, fp.components)
    store.index.add_segment(path.stem, fp.hex, path.stat().st_size, items)


def contents(tmp_path) -> Contents:
    item = Item("a", "train", (Caption("c", "x", digest="caption"),), digest="video")
    return Contents(Corpus(tmp_path / "corpus.jsonl", (item,)), {"a": "video"})


def test_what_was_imported_is_found_again_as_the_same_stage(store):
    assert not has_imports(store.root) and imported_stages(store.index) == {}
    for of, key in (("items", "video"), ("captions", "caption")):
        bring(store, stage(of), key)
    found = imported_stages(store.index)
    assert has_imports(store.root) and set(found) == {"import-items", "import-captions"}
    assert [(found[name].over, found[name].params) for name in sorted(found)] == [
        ("captions", stage("captions").params), ("items", stage().params),
    ]  # fmt: skip


def test_imported_features_are_done_and_nothing_runs(store, tmp_path):
    stages = {s.name: s for s in (stage(), stage("captions"))}
    for one, key in zip(stages.values(), ("video", "caption"), strict=True):
        bring(store, one, key)
    states = survey(stages, contents(tmp_path), store, RememberedDigests(store.index))
    assert all(state.complete and state.done == 1 for state in states.values())


def test_features_that_are_not_there_are_one_sentence(store, tmp_path):
    one = stage()
    bring(store, one, "another video")
    runner = Runner({one.name: one}, contents(tmp_path), store, RememberedDigests(store.index), RunOptions())
    with pytest.raises(
        UserError, match=r"the imported features import-items lack 1 of the 1 items of .*corpus.jsonl"
    ):
        runner.bring_up_to_date(one.name)


def test_the_fingerprint_of_what_was_imported_before_a_setting_existed_stays():
    assert stage().decisive() == {"layout": "ms-sl", "source": "d", "of": "items", "dims": 3}
    half = ImportedParams(layout="npy", source="d", of="items", dims=3, dtype="float16")
    assert half.decisive()["dtype"] == "float16"


ARRAYS = {
    "a": np.ones((2, 3)),
    "clips/b": np.full((1, 4, 3), 2.0),
    "c": np.full(3, 3.0),
    "nobody": np.ones((1, 3)),
}


def corpus_of(folder: Path, *ids: str) -> Path:
    """A manifest of media files, which hold anything, each with one caption."""
    for name in ids:
        (folder / f"{name}.mp4").write_bytes(b"media of " + name.encode())
    items = [Item(name, "train", (Caption(f"{name}#0", f"seen {name}"),), f"{name}.mp4") for name in ids]
    write_manifest(folder / "corpus.jsonl", items)
    return folder / "corpus.jsonl"


def bring_files(
    store: Store, folder: Path, manifest: Path, arrays: dict[str, np.ndarray], of: str = "items",
    name: str = "Official",
) -> FilesReport:  # fmt: skip
    for array_name, array in arrays.items():
        path = folder / "published" / f"{array_name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    with FeatureFiles.open(folder / "published", "npy") as files:
        return import_files(store, files, "npy", "", manifest, of, name)  # type: ignore[arg-type]


def state_of(store: Store, manifest: Path) -> State:
    known = read_contents(Corpus.read(manifest), store.index)
    stages = imported_stages(store.index)
    return survey(stages, known, store, RememberedDigests(store.index))["import-official"]


def test_arrays_of_nothing_but_zeros_are_taken_and_named(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b")
    arrays = {"a": np.zeros((3, 4), np.float32), "b": np.eye(4, dtype=np.float32)}
    report = bring_files(store, tmp_path, manifest, arrays)
    assert (report.matched, report.failed, report.zeros) == (2, {}, ["a"])


def test_arrays_become_a_stage_of_the_corpus_under_the_digests_of_its_media(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b", "c")
    report = bring_files(store, tmp_path, manifest, ARRAYS)
    assert report == FilesReport("import-official", 3, 3, 1, [], 1, 0, {}, 3)
    state = state_of(store, manifest)
    assert state.complete and state.done == 3
    reader = store.reader(report.stage, state.fingerprint.hex)
    digests = read_contents(Corpus.read(manifest), store.index).digests
    for name, array in (("a", ARRAYS["a"]), ("b", ARRAYS["clips/b"][0]), ("c", ARRAYS["c"][None])):
        np.testing.assert_array_equal(reader.rows(digests[name], "row"), array)
        assert reader.rows(digests[name], "row").dtype == np.float32


def test_arrays_of_captions_are_found_under_the_digests_of_their_texts(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b")
    report = bring_files(
        store, tmp_path, manifest, {"a#0": np.ones((2, 3)), "b#0": np.ones((5, 3))}, "captions"
    )
    assert (report.matched, state_of(store, manifest).stage.over) == (2, "captions")
    with pytest.raises(
        UserError, match="import-official stands for features of captions; choose another --name"
    ):
        bring_files(store, tmp_path, manifest, ARRAYS)


def test_float16_stays_what_it_is_and_anything_wider_makes_it_float32(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b", "c")
    bring_files(store, tmp_path, manifest, {k: v.astype(np.float16) for k, v in ARRAYS.items()})
    assert state_of(store, manifest).stage.fields["row"].dtype == "float16"
    bring_files(store, tmp_path, manifest, {"c": np.full(3, 3.0), "b": np.array([[1, 2, 3]])})
    assert state_of(store, manifest).stage.fields["row"].dtype == "float32"


def test_items_without_an_array_are_failures_that_runs_leave_out(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b", "c", "d", "e")
    for _ in range(2):  # importing again changes nothing
        report = bring_files(store, tmp_path, manifest, ARRAYS)
        assert (report.matched, report.missing) == (3, ["d", "e"])
        state = state_of(store, manifest)
        assert state.complete and state.done == 3
        assert {(f.name, f.reason, f.attempts) for f in state.failed.values()} == {
            ("d", NOT_THERE, 1), ("e", NOT_THERE, 1)
        }  # fmt: skip


@pytest.mark.parametrize("order", [{"redo": True}, {"retry_failed": True}])
def test_no_order_to_make_again_touches_what_nobody_here_can_make(store, tmp_path, order):
    manifest = corpus_of(tmp_path, "a", "b", "d")
    bring_files(store, tmp_path, manifest, ARRAYS)
    known = RememberedDigests(store.index)
    contents = read_contents(Corpus.read(manifest), store.index)
    runner = Runner(imported_stages(store.index), contents, store, known, RunOptions())
    report = runner.bring_up_to_date("import-official", **order)
    assert (report.cached, report.ran, report.failed) == (2, 0, 1)
    assert state_of(store, manifest).done == 2


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((2, 4)), "its rows have 4 numbers, those of the others 3"),
        (np.full((2, 3), np.nan), "it holds NaN or infinity"),
        (np.ones((0, 3)), "it is empty"),
        (np.ones((2, 2, 3)), "it has the shape"),
        (np.array([["x"]]), "it holds <U1"),
        (np.full((1, 3), 1e300), "exceeds the range of float32"),
    ],
)
def test_an_array_that_is_nothing_of_the_kind_fails_alone(store, tmp_path, array, reason):
    manifest = corpus_of(tmp_path, "a", "b", "c")
    report = bring_files(store, tmp_path, manifest, ARRAYS | {"a": array})
    assert list(report.failed) == ["a"] and reason in report.failed["a"]
    state = state_of(store, manifest)
    assert state.complete and state.done == 2 and [f.name for f in state.failed.values()] == ["a"]


def test_arrays_of_which_none_can_be_had_are_one_sentence(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b")
    with pytest.raises(UserError, match="none of the 1 arrays can be imported; the first, a: it is empty"):
        bring_files(store, tmp_path, manifest, {"a": np.ones((0, 3))})
    assert imported_stages(store.index) == {}
    with pytest.raises(
        UserError, match=r"no array of .* \('zz' is the first\) is named as one of the items .*'q'"
    ):
        bring_files(store, tmp_path / "other", corpus_of(tmp_path, "q"), {"zz": np.ones((2, 3))})
    write_manifest(manifest, [Item("a", "train", (), "gone.mp4")])
    with pytest.raises(UserError, match=r"has a digest to import features for: a: the media file .*gone.mp4"):
        bring_files(store, tmp_path, manifest, ARRAYS)


def test_items_whose_media_are_gone_are_counted(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b")
    (tmp_path / "b.mp4").unlink()
    assert bring_files(store, tmp_path, manifest, ARRAYS).unreadable == 1


def test_the_same_files_for_a_larger_corpus_add_to_what_is_there(store, tmp_path):
    bring_files(store, tmp_path, corpus_of(tmp_path, "a"), ARRAYS)
    small = state_of(store, tmp_path / "corpus.jsonl")
    bring_files(store, tmp_path, corpus_of(tmp_path, "a", "b"), ARRAYS)
    large = state_of(store, tmp_path / "corpus.jsonl")
    assert (small.done, large.done, small.fingerprint.hex) == (1, 2, large.fingerprint.hex)


def test_an_item_renamed_to_another_array_s_name_needs_another_stage(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b")
    bring_files(store, tmp_path, manifest, ARRAYS)
    write_manifest(manifest, [Item("c", "train", (), "a.mp4"), Item("b", "train", (), "b.mp4")])
    with pytest.raises(UserError, match="holds the array 'a' for what these files call 'c'; choose another"):
        bring_files(store, tmp_path, manifest, ARRAYS)


def test_other_files_under_the_same_name_take_its_place(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b")
    bring_files(store, tmp_path, manifest, ARRAYS)
    before = state_of(store, manifest).fingerprint.hex
    bring_files(store, tmp_path, manifest, ARRAYS | {"a": np.zeros((2, 3))})
    state = state_of(store, manifest)
    assert state.fingerprint.hex != before and list(store.index.fingerprints("import-official")) == [
        state.fingerprint.hex
    ]


def test_a_stage_is_named_in_small_letters_with_the_prefix_once(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b")
    assert (
        bring_files(store, tmp_path, manifest, ARRAYS, name="import-CLIP (B/32)").stage == "import-clip-b-32"
    )
    with pytest.raises(UserError, match="no stage can be named after '特征'"):
        bring_files(store, tmp_path, manifest, ARRAYS, name="特征")


def captioned(folder: Path, texts: list[str], media: bool = True) -> Path:
    """A manifest of items with one caption each, c0 of v0 and so on."""
    items = []
    for n, text in enumerate(texts):
        if media:
            (folder / f"v{n}.mp4").write_bytes(b"media of %d" % n)
        key = "" if media else digest_of_id(f"v{n}")
        items.append(
            Item(f"v{n}", "train", (Caption(f"c{n}", text),), f"v{n}.mp4" if media else None, digest=key)
        )
    write_manifest(folder / "corpus.jsonl", items)
    return folder / "corpus.jsonl"


def test_captions_of_equal_text_with_different_arrays_are_a_conflict_by_name(store, tmp_path):
    manifest = captioned(tmp_path, ["a dog", "text", "text", "text"])
    arrays = {f"c{n}": np.full((3, 2), float(n)) for n in range(4)}
    with pytest.raises(
        UserError, match=r"the captions 'c1' and 'c2' have the same text 'text', and their arrays differ"
    ):
        bring_files(store, tmp_path, manifest, arrays, "captions")
    assert not store.index.fingerprints("import-official")


def test_captions_of_equal_text_with_equal_arrays_share_one_and_the_counts_say_so(store, tmp_path):
    manifest = captioned(tmp_path, ["a dog", "text", "text", "text", "a cat"])
    arrays = {f"c{n}": np.full((3, 2), min(float(n), 1.0)) for n in range(3)}  # c3 has none of its own
    arrays["c2"] *= 1 + 1e-4  # as another batch rounds
    report = bring_files(store, tmp_path, manifest, arrays, "captions")
    assert (report.total, report.matched, report.arrays, report.missing) == (5, 4, 2, ["c4"])
    assert state_of(store, manifest).done == 2


def test_of_equal_texts_an_array_that_can_be_read_stands_for_one_that_cannot(store, tmp_path):
    manifest = captioned(tmp_path, ["text", "text"])
    arrays = {"c0": np.array([[1, np.nan]]), "c1": np.ones((1, 2))}
    report = bring_files(store, tmp_path, manifest, arrays, "captions")
    assert (report.matched, report.arrays, report.failed) == (2, 1, {})


def test_items_of_the_same_bytes_with_different_arrays_are_a_conflict_by_name(store, tmp_path):
    manifest = corpus_of(tmp_path, "a", "b")
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    with pytest.raises(UserError, match="the items 'a' and 'b' are the same file, and their arrays differ"):
        bring_files(store, tmp_path, manifest, {"a": np.ones((2, 3)), "b": np.zeros((2, 3))})


def test_a_manifest_of_features_alone_imports_as_it_stands(store, tmp_path):
    lines = [
        {"id": "v0", "split": "train", "captions": [{"id": "c0", "text": "a dog"}, {"id": "c1"}]},
        {"id": "v1", "split": "train", "captions": [{"id": "c2"}, {}]},
    ]
    manifest = tmp_path / "corpus.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = bring_files(store, tmp_path, manifest, {"v0": np.ones((2, 3)), "v1": np.zeros((4, 3))})
    assert (report.matched, report.arrays) == (2, 2)
    arrays = {name: np.full((2, 3), float(n)) for n, name in enumerate(("c0", "c1", "c2", "v1#1"))}
    report = bring_files(store, tmp_path / "texts", manifest, arrays, "captions", name="words")
    assert (report.total, report.matched, report.arrays) == (4, 4, 4)
    texts = [caption.text for item in Corpus.read(manifest).items for caption in item.captions]
    assert texts == ["a dog", *(f"({name}; its words were not published)" for name in ("c1", "c2", "v1#1"))]
    write_manifest(tmp_path / "again.jsonl", Corpus.read(manifest).items)  # and comes back as it was
    assert Corpus.read(tmp_path / "again.jsonl").items == Corpus.read(manifest).items


def test_a_caption_of_an_item_with_media_needs_its_text(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        '{"id": "v", "media": "v.mp4", "split": "train", "captions": [{"id": "c"}]}\n'
    )
    with pytest.raises(UserError, match="caption 'c' of item 'v' is empty"):
        Corpus.read(tmp_path / "corpus.jsonl")
