"""From a published feature set and a checkpoint in the authors' layout to figures, and back again."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.project import open_project
from pipeline.errors import UserError

TINY = Path(__file__).parents[1] / "fixtures/hlformer/mssl_tiny/tiny"
SETTINGS = """
corpus = "corpus.jsonl"
store = "store"
methods = ["hlformer"]
[run]
workers = 1
[trainers.hlformer]
video_features = "import-i3d_toy"
text_features = "import-roberta_tiny_query_feat"
hidden_size = 16
heads = 2
lorentz_dim = 11
blocks = 4
epochs = 2
"""


def call(*words: object) -> str:
    """What a verb prints; fails with what it raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.stdout


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
    with pytest.raises(UserError, match=r"do not fit HLFormer.*hidden|do not fit HLFormer.*shape"):
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
