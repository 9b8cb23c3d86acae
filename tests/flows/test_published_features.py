"""From a published feature set and a checkpoint in the authors' layout to figures, and back again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from flows.project import open_project
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.errors import UserError
from pipeline.features.layouts.ms_sl import MsSl

pytestmark = pytest.mark.usefixtures("forked")

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "hlformer/mssl_tiny/tiny"
SETTINGS = (FIXTURES / "experiments/mssl_tiny.toml").read_text().replace("epochs = 1", "epochs = 2")


def call(*words: object, code: int = 0) -> str:
    """What a verb prints; fails with what it raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, (words, result.output, result.exception)
    return result.stdout


def planned(folder: Path, told: str) -> set[str]:
    """The methods that `crossreel plan` trains with the lines that an import printed, just as they are."""
    (folder / "printed.toml").write_text(told[told.index('corpus = "') :])
    stages = json.loads(call("plan", folder / "printed.toml", "--json", "--set", "run.anyway=true"))
    assert all(state["missing"] == 0 for name, state in stages.items() if name.startswith("import-"))
    return {name.removeprefix("train-") for name in stages if name.startswith("train-")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with imported features and an experiment on them, evaluated."""
    folder = tmp_path_factory.mktemp("published")
    call("import", "features", TINY, "--store", folder / "store", "--out", folder / "corpus.jsonl")
    (folder / "experiment.toml").write_text(SETTINGS)
    call("stage", "evaluate", folder / "experiment.toml")
    return folder


def figures(folder: Path, *sets: str) -> dict:
    words = [word for text in sets for word in ("--set", text)]
    told = json.loads(call("stage", "evaluate", folder / "experiment.toml", "--json", *words))
    return told["leaderboard"][0]["metrics"]


def test_imported_rows_are_those_of_the_source(folder):
    project = open_project(folder / "experiment.toml")
    state = project.survey()["import-roberta_tiny_query_feat"]
    reader = project.store.reader(state.stage.name, state.fingerprint.hex)
    with h5py.File(TINY / "TextData/roberta_tiny_query_feat.hdf5") as source:
        for key, caption in project.contents.captions().items():
            np.testing.assert_array_equal(reader.rows(key, "row"), np.asarray(source[caption.id]))


def test_importing_again_changes_nothing(folder):
    before = {path.name for path in (folder / "store/segments").rglob("*.h5")}
    call("import", "features", TINY, "--store", folder / "store", "--out", folder / "corpus.jsonl")
    assert {path.name for path in (folder / "store/segments").rglob("*.h5")} == before


def test_a_checkpoint_goes_out_in_the_authors_layout_and_comes_back_with_the_same_figures(folder):
    call("export", "checkpoint", folder / "out.ckpt", folder / "experiment.toml")
    printed = call("import", "checkpoint", folder / "out.ckpt", folder / "weights")
    assert "hidden_size = 16" in printed
    again = figures(folder, 'trainers.hlformer.weights="weights"', "trainers.hlformer.epochs=0")
    assert again == figures(folder)


def test_weights_count_by_their_content_not_their_place(folder):
    call("export", "checkpoint", folder / "out.ckpt", folder / "experiment.toml")
    for name in ("here", "there"):
        call("import", "checkpoint", folder / "out.ckpt", folder / name)
    prints = {
        open_project(folder / "experiment.toml", [f'trainers.hlformer.weights="{name}"'])
        .survey()["train-hlformer"]
        .fingerprint.hex
        for name in ("here", "there")
    }
    assert len(prints) == 1


def test_weights_of_another_shape_are_refused_in_one_sentence(folder):
    call("export", "checkpoint", folder / "out.ckpt", folder / "experiment.toml")
    call("import", "checkpoint", folder / "out.ckpt", folder / "weights")
    with pytest.raises(UserError, match=r"do not fit HLFormer: the tensor .* is needed"):
        figures(folder, 'trainers.hlformer.weights="weights"', "trainers.hlformer.hidden_size=32")


def test_a_corpus_whose_features_were_not_imported_is_refused(folder):
    line = '{"id": "v_zz", "media": null, "digest": "00", "split": "train", "captions": [{"id": "c", "text": "x"}]}\n'
    other = folder / "other.jsonl"
    other.write_text((folder / "corpus.jsonl").read_text() + line)
    with pytest.raises(UserError, match=r"import-.* lack 1 of the"):
        figures(folder, 'corpus="other.jsonl"')


def test_features_that_are_not_there_are_named_with_the_nearest(folder):
    with pytest.raises(UserError, match=r"did you mean 'import-i3d_toy'"):
        figures(folder, 'trainers.hlformer.video_features="import-i3d"')


@pytest.mark.parametrize("layout", ["npz", "safetensors"])
def test_exported_features_are_the_stored_rows(folder, layout, tmp_path):
    call("export", "features", "import-i3d_toy", tmp_path, folder / "experiment.toml", "--layout", layout)
    project = open_project(folder / "experiment.toml")
    fp = project.survey()["import-i3d_toy"].fingerprint.hex
    reader = project.store.reader("import-i3d_toy", fp)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["fingerprint"] == fp
    for item in project.contents.corpus.items:
        path = tmp_path / index["files"][item.id]
        if layout == "npz":
            found = np.load(path, allow_pickle=False)["row"]
        else:
            from safetensors.numpy import load_file

            found = load_file(path)["row"]
        np.testing.assert_array_equal(found, reader.rows(project.contents.digests[item.id], "row"))


def test_a_training_killed_after_its_last_line_is_not_trained_again(folder):
    project = open_project(folder / "experiment.toml")
    state = project.survey()["train-hlformer"]
    store, fp = project.store, state.fingerprint.hex
    done, work = store.run_folder("train-hlformer", fp), store.work_folder("train-hlformer", fp)
    before = (done / "weights.safetensors").stat().st_mtime_ns, store.run_record("train-hlformer", fp)
    work.parent.mkdir(parents=True, exist_ok=True)
    done.rename(work)
    (work / "artifact.json").unlink()
    (work / "last.safetensors").write_bytes(b"left behind")
    call("stage", "train", folder / "experiment.toml")
    assert (done / "weights.safetensors").stat().st_mtime_ns == before[0]
    assert not (done / "last.safetensors").exists()
    after = store.run_record("train-hlformer", fp)
    assert all(after[key] == before[1][key] for key in ("best_epoch", "epochs", "validation", "parameters"))


def test_a_row_that_is_missing_is_named(tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    path = tmp_path / "tiny/FeatureData/i3d_toy/id.txt"
    names = path.read_text().split()
    path.write_text(" ".join(["gone", *names[1:]]))
    words = (
        "import",
        "features",
        tmp_path / "tiny",
        "--store",
        tmp_path / "s",
        "--out",
        tmp_path / "c.jsonl",
    )
    with pytest.raises(UserError, match=rf"row '{names[0]}' of video '.*' is not in id\.txt"):
        call(*words)
    assert not (tmp_path / "c.jsonl").exists()


def test_an_exported_collection_is_the_imported_one(folder, tmp_path):
    target = tmp_path / "again"
    call("export", "features", "import-i3d_toy", target, folder / "experiment.toml", "--layout", "ms-sl")
    with MsSl.open(TINY) as source, MsSl.open(target) as found:
        assert found.splits == source.splits
        for videos, captions in source.splits.values():
            for video in videos:
                np.testing.assert_array_equal(found.video(video), source.video(video))
            for caption, _, _ in captions:
                np.testing.assert_array_equal(found.tokens(caption), source.tokens(caption))


def test_options_that_a_layout_does_not_know_are_refused(folder, tmp_path):
    export = ("export", "features", "import-i3d_toy", tmp_path, folder / "experiment.toml")
    for words, sentence in (
        ((*export, "--field", "row"), "--text-stage and --field are for ms-sl and h2arn; npz holds"),
        ((*export, "--layout", "csv"), "unknown layout 'csv'; possible: npz, safetensors, ms-sl, h2arn"),
        ((*export, "--layout", "ms-sl", "--field", "rwo"), "has no output 'rwo'; did you mean 'row'"),
        ((*export, "--layout", "ms-sl", "--text-stage", "clip_text"), "'clip_text' has no features in"),
        ((*export, "--layout", "ms-sl", "--text-stage", "import-i3d_toy"), "is of items; ms-sl needs one"),
        ((*export, "--subset", "Elephant"), "--subset is for h2arn"),
        ((*export, "--layout", "h2arn", "--text-stage", "import-i3d_toy"), "is of items; h2arn needs one"),
        (
            (*export, "--layout", "h2arn"),
            "has the shape .* for the first; h2arn holds as many tokens for all",
        ),
        (
            ("import", "features", TINY, "--name", "x"),
            "ms-sl brings its own corpus: it takes none of --corpus",
        ),
        (
            ("import", "features", TINY, "--layout", "h2arn", "--name", "x"),
            "h2arn brings its own corpus: it takes",
        ),
        (("import", "features", TINY, "--layout", "h2arn"), "is no folder of H2ARN's: it holds no save/"),
        (("import", "features", TINY, "--subset", "x"), "--subset is for h2arn"),
        (("import", "features", TINY, "--val", "9"), "--val is for h2arn"),
        (("import", "features", TINY, "--layout", "npz"), "name the manifest of their corpus with --corpus"),
        (("import", "features", TINY, "--layout", "npy", "--dataset", "x"), "--dataset is for hdf5"),
        (("import", "features", TINY, "--layout", "hdf5", "--array", "x"), "--array is for files of arrays"),
        (("import", "features", tmp_path / "gone", "--layout", "npz"), "gone does not exist"),
    ):
        with pytest.raises(UserError, match=sentence):
            call(*words)
    with pytest.raises(UserError, match="--of 'videos' is not possible"):
        call("import", "features", TINY, "--layout", "npy", "--corpus", "c.jsonl", "--of", "videos")


def own_corpus(folder: Path, count: int = 8) -> list[Item]:
    """A corpus whose media hold anything: features come from elsewhere."""
    items = []
    for n in range(count):
        (folder / f"clip{n}.mp4").write_bytes(bytes([n]) * 100)
        captions = tuple(Caption(f"clip{n}#{k}", f"clip {n} seen {k} times") for k in range(2))
        items.append(Item(f"clip{n}", ("train", "train", "val", "test")[n % 4], captions, f"clip{n}.mp4"))
    write_manifest(folder / "corpus.jsonl", items)
    return items


OWN = SETTINGS.replace("import-i3d_toy", "import-official").replace(
    "import-roberta_tiny_query_feat", "import-words"
)


@pytest.mark.slow
def test_published_arrays_train_a_method_on_a_corpus_of_ours_without_those_that_are_missing(tmp_path):
    items = own_corpus(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "official").mkdir()
    for item in items[:-1]:
        tensor = torch.from_numpy(rng.normal(size=(1, 9, 6)).astype(np.float32))
        torch.save({"frame": tensor, "fps": 3}, tmp_path / f"official/{item.id}.pt")
    with h5py.File(tmp_path / "words.h5", "w") as file:
        for item in items:
            for caption in item.captions:
                file[f"{caption.id}/features"] = rng.normal(size=(4, 5))
    common = ("--store", tmp_path / "store", "--corpus", tmp_path / "corpus.jsonl")
    told = call("import", "features", tmp_path / "official", "--layout", "pt", *common, code=3)
    assert "import-official: 7 of the 8 items" in told and "not in the features: clip7\n" in told
    told = call(
        "import", "features", tmp_path / "words.h5", "--layout", "hdf5", "--dataset", "features", "--of",
        "captions", *common,
    )  # fmt: skip
    assert 'text_features = "import-words"' in told and "16 of the 16 captions" in told
    (tmp_path / "experiment.toml").write_text(OWN.replace("epochs = 2", "epochs = 1"))
    ran = json.loads(call("stage", "evaluate", tmp_path / "experiment.toml", "--json", code=3))
    failures = {report["stage"]: report["failures"] for report in ran["stages"]}
    assert failures["import-official"] == [
        {"name": "clip7", "reason": "not in the imported features", "kind": "failed"}
    ]
    assert ran["leaderboard"][0]["metrics"]


def test_a_map_of_tensors_in_one_file_is_read_and_bfloat16_is_widened(tmp_path):
    own_corpus(tmp_path, 4)
    rows = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    torch.save({f"clip{n}": rows * (n + 1) for n in range(4)}, tmp_path / "all.pt")
    told = call(
        "import", "features", tmp_path / "all.pt", "--layout", "pt", "--store", tmp_path / "store", "--corpus",
        tmp_path / "corpus.jsonl", "--name", "official",
    )  # fmt: skip
    assert "4 of the 4 items" in told
    call(
        "import", "features", tmp_path / "all.pt", "--layout", "pt", "--store", tmp_path / "store", "--corpus",
        tmp_path / "corpus.jsonl", "--name", "official",
    )  # fmt: skip
    (tmp_path / "experiment.toml").write_text(OWN.replace("import-words", "clip_text"))
    project = open_project(tmp_path / "experiment.toml")
    state = project.survey()["import-official"]
    reader = project.store.reader("import-official", state.fingerprint.hex)
    for n in range(4):
        key = project.contents.digests[f"clip{n}"]
        np.testing.assert_array_equal(reader.rows(key, "row"), (rows * (n + 1)).float().numpy())


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"clip0": np.ones((2, 3))}, "or holds more than tensors"),
        ([1, 2], "it holds no tensors but a list"),
        (b"nothing of the kind", "it is damaged, or holds"),
    ],
)
def test_a_pt_file_with_anything_else_is_one_sentence(tmp_path, saved, words):
    own_corpus(tmp_path, 1)
    path = tmp_path / "all.pt"
    path.write_bytes(saved) if isinstance(saved, bytes) else torch.save(saved, path)
    with pytest.raises(UserError, match=words):
        call(
            "import", "features", path, "--layout", "pt", "--store", tmp_path / "store",
            "--corpus", tmp_path / "corpus.jsonl",
        )  # fmt: skip


def test_groups_without_a_dataset_named_are_answered_with_what_to_write(tmp_path):
    items = own_corpus(tmp_path, 2)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for item in items:
            file[f"{item.id}/features"] = np.ones((2, 3))
    with pytest.raises(
        UserError, match=r"'clip0/features' is the first\).*is --dataset features what you want"
    ):
        call(
            "import", "features", tmp_path / "all.h5", "--layout", "hdf5", "--store", tmp_path / "store",
            "--corpus", tmp_path / "corpus.jsonl",
        )  # fmt: skip


LINKED = [(0, 0), (1, 0), (2, 1), (2, 3), (4, 3), (5, 2)]  # text, cloud: text 3 belongs to none


@pytest.fixture
def clouds(tmp_path: Path) -> Path:
    """A subset as H2ARN's authors publish it."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        place = tmp_path / "theirs/feature/Elephant" / split
        place.mkdir(parents=True)
        (tmp_path / "theirs/save").mkdir(exist_ok=True)
        torch.save(torch.randn(6, 7, 8, generator=generator), place / "txt_features_CLIP.pt")
        torch.save(torch.randn(4, 5, 8, generator=generator), place / "pc_features_DGCNN.pt")
        entries = [[["t.pt", text], ["c.pt", cloud]] for text, cloud in LINKED]
        (tmp_path / f"theirs/save/Elephant_link_{split}.json").write_text(json.dumps(entries))
    return tmp_path


def brought(folder: Path, val: str = "0") -> str:
    common = ("--layout", "h2arn", "--store", folder / "store", "--out", folder / "corpus.jsonl")
    return call("import", "features", folder / "theirs", *common, "--val", val)


def test_cloud_features_come_in_with_the_lines_to_train_on_them(clouds):
    told = brought(clouds)
    assert "8 clouds, 10 captions (2 texts that belong to none were left out)" in told
    assert "h2arn cannot be trained on them" in told and "split 'val' has no captions" in told  # --val 0
    told = brought(clouds, "papers")
    lines = (
        '[trainers.h2arn]\ncloud_features = "import-elephant-dgcnn"\ntext_features = "import-elephant-clip"'
    )
    assert lines in told and 'methods = ["h2arn"]' in told
    assert planned(clouds, told) == {"h2arn"}


EXPERIMENT = """
corpus = "corpus.jsonl"
store = "store"
methods = ["h2arn"]
[run]
workers = 1
[trainers.h2arn]
cloud_features = "import-elephant-dgcnn"
text_features = "import-elephant-clip"
d_model = 8
nhead = 2
num_layers = 1
epochs = 1
"""


def test_cloud_features_go_out_in_the_authors_layout_with_the_values_that_came_in(clouds):
    brought(clouds, "papers")
    (clouds / "experiment.toml").write_text(EXPERIMENT)
    call(
        "export", "features", "import-elephant-dgcnn", clouds / "ours", clouds / "experiment.toml", "--layout", "h2arn",
        "--subset", "Elephant",
    )  # fmt: skip
    for split in ("train", "test"):
        texts, rows = (
            [
                torch.load(clouds / folder / "feature/Elephant" / split / f"{name}.pt", weights_only=True)
                for folder in ("theirs", "ours")
            ]
            for name in ("txt_features_CLIP", "pc_features_DGCNN")
        )
        assert rows[1].dtype == torch.float32 and torch.equal(*rows)
        entries = json.loads((clouds / f"ours/save/Elephant_link_{split}.json").read_text())
        assert entries[0][0][0] == f"feature/Elephant/{split}/txt_features_CLIP.pt"
        found = {(texts[1][text].numpy().tobytes(), cloud) for (_, text), (_, cloud) in entries}
        assert found == {(texts[0][text].numpy().tobytes(), cloud) for text, cloud in LINKED}
        assert len(texts[1]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("val", ["1", "papers"])
def test_h2arn_trains_on_imported_features(clouds, val):
    assert "validated on" in brought(clouds, val)
    (clouds / "experiment.toml").write_text(EXPERIMENT)
    ran = json.loads(call("stage", "evaluate", clouds / "experiment.toml", "--json"))
    assert ran["leaderboard"][0]["method"] == "h2arn" and ran["leaderboard"][0]["metrics"]


def test_a_pt_file_of_clouds_that_holds_more_than_tensors_is_refused(clouds):
    torch.save({"rows": np.ones((4, 5, 8))}, clouds / "theirs/feature/Elephant/train/pc_features_DGCNN.pt")
    with pytest.raises(UserError, match=r"pc_features_DGCNN\.pt: .*nothing else is unpickled"):
        brought(clouds)
    assert not (clouds / "corpus.jsonl").exists()


def features_alone(folder: Path, rows: int, texts: Any = None, kind: str = "video") -> Path:
    """A manifest without media, and a file of each side's arrays; captions have `rows` rows, more if 0."""
    with (folder / "corpus.jsonl").open("w") as file:
        for n in range(10):
            captions = [{"id": f"-c{n}#{k}", **({"text": texts} if texts else {})} for k in range(2)]
            split = ("train", "train", "train", "val", "test")[n % 5]
            file.write(
                json.dumps({"id": f"-v{n}", "kind": kind, "split": split, "captions": captions}) + "\n"
            )
    rng = np.random.default_rng(0)
    np.savez(folder / "items.npz", **{f"-v{n}": rng.normal(size=(5, 16)).astype("f4") for n in range(10)})
    np.savez(
        folder / "texts.npz",
        **{
            f"-c{n}#{k}": rng.normal(size=(rows or 3 + n, 16)).astype("f4")
            for n in range(10)
            for k in range(2)
        },
    )
    return folder


def came(folder: Path, of: str, code: int = 0, **options: str) -> str:
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    common = ("--layout", "npz", "--corpus", folder / "corpus.jsonl", "--store", folder / "store", "--of", of)
    return call(
        "import",
        "features",
        folder / f"{'texts' if of == 'captions' else of}.npz",
        *common,
        *words,
        code=code,
    )


@pytest.mark.parametrize(
    ("rows", "kind", "methods"),
    [
        (0, "video", {"hlformer", "neighborretr", "lean"}),
        (1, "video", {"hlformer", "neighborretr", "gare", "clip4clip", "lean"}),
        (0, "pointcloud", {"h2arn"}),
        (4, "pointcloud", {"h2arn"}),
    ],
)
def test_the_printed_lines_are_an_experiment_file_for_the_methods_that_can_read_what_came(
    tmp_path, rows, kind, methods
):
    folder = features_alone(tmp_path, rows, kind=kind)
    told = came(folder, "captions")
    assert "20 of the 20 captions" in told and "no method can be trained on them yet: the items of" in told
    told = came(folder, "items")
    assert planned(folder, told) == methods
    if "gare" not in methods and kind == "video":
        assert (
            "clip4clip cannot be trained on them: trainers.clip4clip.text_features = 'import-texts'" in told
        )
        assert (
            "gare cannot be trained on them: trainers.gare.text_features = 'import-texts': gare needs (1, D)"
            in told
        )
    assert ("mask_padding = true" in told) == (kind == "pointcloud" and rows == 0)


def test_a_method_that_cannot_use_what_was_imported_is_refused_before_anything_is_made(tmp_path):
    folder = features_alone(tmp_path, 3)
    came(folder, "items")
    came(folder, "captions")
    (folder / "e.toml").write_text(
        'corpus = "corpus.jsonl"\nmethods = ["gare"]\n[trainers.gare]\nmode = "frozen"\n'
        'video_features = "import-items"\ntext_features = "import-texts"\n'
    )
    sentence = (
        r"trainers\.gare\.text_features = 'import-texts': gare needs \(1, D\), one vector a caption; '-c0#0'"
    )
    for verb in (("plan",), ("stage", "pack-gare"), ("run",)):
        with pytest.raises(UserError, match=sentence):
            call(*verb, folder / "e.toml")
    np.savez(
        folder / "texts.npz", **{f"-c{n}#{k}": np.ones(8, "f4") * n + k for n in range(10) for k in range(2)}
    )
    came(folder, "captions")
    with pytest.raises(UserError, match="as wide as the rows of video; D is 8 here and 16 there"):
        call("plan", folder / "e.toml")


def test_placeholder_texts_are_refused_and_ids_stand_for_words_that_were_not_published(tmp_path):
    folder = features_alone(tmp_path, 3, texts="text")
    with pytest.raises(
        UserError, match=r"the captions '-c0#0' and '-c0#1' have the same text 'text', and their arrays"
    ):
        came(folder, "captions")
    features_alone(tmp_path, 3)
    assert "20 of the 20 captions" in came(folder, "captions") and "arrays (" not in came(folder, "captions")
