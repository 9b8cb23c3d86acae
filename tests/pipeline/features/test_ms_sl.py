"""Reader of the MS-SL layout: what is read, and what is said of a set that is not whole."""

from __future__ import annotations

import ast
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.corpus.contents import RememberedDigests, read_contents
from pipeline.corpus.manifest import Corpus
from pipeline.errors import UserError
from pipeline.features.imported import imported_stages
from pipeline.features.importing import import_ms_sl
from pipeline.features.layouts.ms_sl import MsSl
from pipeline.run.plan import State, survey
from pipeline.store.store import Store

FEATURES = np.arange(24, dtype=np.float32).reshape(8, 3)
NAMES = ["r5", "r0", "r1", "r2", "r3", "r4", "é6", "r7"]  # the order of rows in feature.bin
VIDEOS = {"v1": ["r0", "r1", "r2"], "v2": ["r5", "r4", "r3"], "v3": ["é6"], "unused": ["r7"]}
CAPTIONS = {
    "train": "v2#enc#0 a b\nv1#enc#0 c\n\nv2#enc#1 d  e \n",
    "val": "v3#enc#0 caf\xe9\n",
    "test": "v3#enc#1 only#one\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    visual, text = tmp_path / "FeatureData" / "i3d", tmp_path / "TextData"
    visual.mkdir(parents=True)
    text.mkdir()
    FEATURES.astype("<f4").tofile(visual / "feature.bin")
    (visual / "shape.txt").write_text("8 3\n")
    (visual / "id.txt").write_text(" ".join(NAMES), encoding="ISO-8859-1")
    (visual / "video2frames.txt").write_text(repr(VIDEOS), encoding="ISO-8859-1")
    for split, lines in CAPTIONS.items():
        (text / f"col{split}.caption.txt").write_text(lines, encoding="ISO-8859-1")
    with h5py.File(text / "roberta_col_query_feat.hdf5", "w") as file:
        for caption in ("v1#enc#0", "v2#enc#0", "v2#enc#1", "v3#enc#0", "v3#enc#1"):
            file[caption] = np.full((int(caption[1]) + 1, 2), float(caption[-1]), dtype=np.float32)
    return tmp_path


def test_videos_come_in_order_of_first_appearance_and_captions_in_file_order(folder: Path) -> None:
    with MsSl.open(folder) as found:
        videos, captions = found.splits["train"]
        assert videos == ["v2", "v1"]
        assert captions == [("v2#enc#0", "a b", "v2"), ("v1#enc#0", "c", "v1"), ("v2#enc#1", "d  e", "v2")]
        assert found.splits["val"] == (["v3"], [("v3#enc#0", "café", "v3")])
        assert found.splits["test"][1][0][1] == "only#one"


def test_rows_of_a_video_come_in_temporal_order_wherever_they_lie(folder: Path) -> None:
    with MsSl.open(folder) as found:
        for video, names in VIDEOS.items():
            rows = found.video(video)
            assert rows.dtype == np.float32 and rows.shape == (len(names), 3)
            np.testing.assert_array_equal(rows, FEATURES[[NAMES.index(name) for name in names]])


def test_tokens_are_those_of_the_caption(folder: Path) -> None:
    with MsSl.open(folder) as found:
        np.testing.assert_array_equal(found.tokens("v2#enc#1"), np.ones((3, 2)))
        assert found.visual_dim == 3


def test_ids_may_stand_on_lines_of_their_own(folder: Path) -> None:
    (folder / "FeatureData" / "i3d" / "id.txt").write_text("\n".join(NAMES), encoding="ISO-8859-1")
    with MsSl.open(folder) as found:
        np.testing.assert_array_equal(found.video("v3"), FEATURES[6:7])


def test_one_of_several_feature_sets_must_be_named(folder: Path) -> None:
    (folder / "FeatureData" / "other").mkdir()
    with pytest.raises(UserError, match=r"has 2 of the kind visual feature, name one; possible: i3d, other"):
        MsSl.open(folder)
    MsSl.open(folder, "i3d").close()
    with pytest.raises(UserError, match="no visual feature 'i3e'; did you mean 'i3d'"):
        MsSl.open(folder, "i3e")
    with pytest.raises(UserError, match=r"no text feature file 'x\.hdf5'"):
        MsSl.open(folder, "i3d", "x.hdf5")


def test_unknown_video_row_and_caption_are_named(folder: Path) -> None:
    path = folder / "FeatureData" / "i3d" / "video2frames.txt"
    path.write_text(repr({**VIDEOS, "v1": ["r0", "gone"]}), encoding="ISO-8859-1")
    with MsSl.open(folder) as found:
        with pytest.raises(UserError, match=r"row 'gone' of video 'v1' is not in id\.txt"):
            found.video("v1")
        with pytest.raises(UserError, match="video 'v9' is not in"):
            found.video("v9")
        with pytest.raises(UserError, match="caption 'v9#enc#0' has no features"):
            found.tokens("v9#enc#0")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("shape.txt", "8 4", "96 bytes, 8 rows of 4 float32 are 128"),
        ("shape.txt", "7 3", "8 names, shape.txt says 7"),
        ("shape.txt", "eight", "begins with 'eight'"),
        ("id.txt", "r0 r0 r1 r2 r3 r4 r5 r7", "'r0' is one"),
        ("video2frames.txt", "__import__('os').getcwd()", "not the literal of a dict"),
        ("video2frames.txt", "['v1']", "holds a list"),
        ("video2frames.txt", "{'v1': []}", "video 'v1' has no rows"),
        ("video2frames.txt", "{'v1': 'r0'}", "'v1' has no list"),
    ],
)
def test_damaged_file_is_named_with_what_is_wrong(folder: Path, name: str, content: str, words: str) -> None:
    (folder / "FeatureData" / "i3d" / name).write_text(content)
    with pytest.raises(UserError, match=words):
        MsSl.open(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{'v1': ['r0', 'r1',], \n 'v2' : [ 'r2' ,'r7'],}",
        """{"v1": ["r0", 'r1'], "v2": ['r2', 'r7']}""",
        r"{'v1': ['r\x30', 'r1'], 'v2': ['r2', 'r' '7']}",
        "{'v2': ['r1'], 'v1': ('r0', 'r1')[:] and ['r0']}",
        "{'v1': ['r0'], 'v1': ['r0', 'r1'], 'v2': ['r2', 'r7']}",
        "{'v1': ['r0', 'r1'] 'v2': ['r2']}",
        "{'v1': ['r0', 'r1'], 'v2': ['r2']",
        "{'v1': ['r0' 'r1'], 'v2': ['r2']}",
        "{'v1': ['r0', 'r1'], 'v2': ['r2']}}",
        "{,'v1': ['r0']}",
    ],
)
def test_the_rows_of_videos_are_those_of_python_s_literal_in_whatever_way_it_is_written(folder, text):
    try:
        wanted = ast.literal_eval(text)
        assert all(isinstance(names, list) for names in wanted.values())
    except (ValueError, SyntaxError):
        wanted = None
    (folder / "FeatureData" / "i3d" / "video2frames.txt").write_text(text)
    if wanted is None:
        with pytest.raises(UserError, match="not the literal of a dict"):
            MsSl.open(folder)
        return
    with MsSl.open(folder) as found:
        for video, names in wanted.items():
            if all(name in NAMES for name in names):
                rows = FEATURES[[NAMES.index(name) for name in names]]
                np.testing.assert_array_equal(found.video(video), rows)
            else:
                with pytest.raises(UserError, match="is not in id"):
                    found.video(video)


def test_names_of_many_rows_take_less_memory_than_the_file_that_lists_them(folder: Path) -> None:
    visual = folder / "FeatureData" / "i3d"
    videos = {f"v{n}": [f"video_number_{n}_row_{row}" for row in range(50)] for n in range(400)}
    names = [name for of_video in videos.values() for name in of_video]
    np.zeros((len(names), 3), "<f4").tofile(visual / "feature.bin")
    (visual / "shape.txt").write_text(f"{len(names)} 3")
    (visual / "id.txt").write_text(" ".join(reversed(names)))
    (visual / "video2frames.txt").write_text(str(videos))
    tracemalloc.start()
    try:
        with MsSl.open(folder) as found:
            peak = tracemalloc.get_traced_memory()[1]
            assert found._videos["v399"].rows.tolist() == list(range(49, -1, -1))
    finally:
        tracemalloc.stop()
    assert peak < 3 * (visual / "video2frames.txt").stat().st_size  # 43 times with Python's parser and a dict


@pytest.mark.parametrize("name", ["feature.bin", "shape.txt", "id.txt", "video2frames.txt"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / "FeatureData" / "i3d" / name).unlink()
    with pytest.raises(UserError, match=f"there is no .*{name}"):
        MsSl.open(folder)


def test_missing_caption_file_and_folder_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "TextData" / "colval.caption.txt").unlink()
    with pytest.raises(UserError, match="has 0 of the kind val caption file"):
        MsSl.open(folder)
    with pytest.raises(UserError, match="FeatureData is not a folder"):
        MsSl.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "words"), [("v1enc0 x", "line 1: 'v1enc0'"), ("v1#enc#0 x\nv1#enc#0 y", "line 2: caption")]
)
def test_caption_line_that_cannot_be_is_named_by_its_number(folder: Path, line: str, words: str) -> None:
    (folder / "TextData" / "coltest.caption.txt").write_text(line)
    with pytest.raises(UserError, match=words):
        MsSl.open(folder)


def brought_in(folder: Path, store: Store) -> tuple[Corpus, dict[str, State]]:
    """The corpus and the stages of an imported collection."""
    import_ms_sl(store, folder, store.root / "corpus.jsonl")
    corpus = Corpus.read(store.root / "corpus.jsonl")
    stages = imported_stages(store.index)
    return corpus, survey(stages, read_contents(corpus, store.index), store, RememberedDigests(store.index))


def test_an_imported_collection_has_each_video_s_rows_and_captions_wherever_they_stood(
    folder: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    corpus, states = brought_in(folder, store)
    assert [(i.id, i.split, [c.id for c in i.captions]) for i in corpus.items] == [
        ("v2", "train", ["v2#enc#0", "v2#enc#1"]),
        ("v1", "train", ["v1#enc#0"]),
        ("v3", "val", ["v3#enc#0", "v3#enc#1"]),
    ]
    assert [c.split for c in corpus.items[2].captions] == [None, "test"]
    state = states["import-i3d"]
    reader = store.reader("import-i3d", state.fingerprint.hex)
    for item in corpus.items:
        rows = FEATURES[[NAMES.index(name) for name in VIDEOS[item.id]]]
        np.testing.assert_array_equal(reader.rows(item.digest, "row"), rows)
    assert state.complete and not state.failed


def test_what_is_not_finite_in_a_collection_is_that_video_s_failure(folder: Path, tmp_path: Path) -> None:
    values = FEATURES.copy()
    values[NAMES.index("r1")] = np.nan
    values.tofile(folder / "FeatureData" / "i3d" / "feature.bin")
    _, states = brought_in(folder, Store(tmp_path / "store"))
    (failure,) = states["import-i3d"].failed.values()
    assert (failure.name, failure.reason) == ("v1", "it holds NaN or infinity")
    assert states["import-i3d"].done == 2
