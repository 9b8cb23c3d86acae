"""crossreel as a library: what it imports, features by name, errors in sentences, tables, settings."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import crossreel as library
from crossreel.settings import as_sets
from crossreel.tables import Table

pytestmark = pytest.mark.usefixtures("forked")

HEAVY = ("torch", "prefect", "transformers", "open_clip", "decord")
LOOKING = f"""
import sys
import crossreel
assert not [name for name in sys.modules if name.split(".")[0] in ("flows", "numpy", "torch")], "import is lazy"
for name in crossreel.__all__:
    getattr(crossreel, name)
experiment = crossreel.open("experiment.toml")
assert not experiment.plan().problems
experiment.store["clip"].numpy()
experiment.runs["hlformer"].metrics()
crossreel.metrics([[1.0, 0.0], [0.0, 1.0]])
assert not {set(HEAVY)!r} & set(sys.modules), {set(HEAVY)!r} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def lab_folder(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a lab in which everything up to the evaluation was made."""
    folder = tmp_path_factory.mktemp("library")
    shutil.copytree(made_once, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def experiment(lab_folder: Path):
    with library.open(lab_folder / "experiment.toml", quiet=True) as opened:
        yield opened


def test_looking_at_an_experiment_imports_nothing_heavy(lab_folder):
    subprocess.run([sys.executable, "-c", LOOKING], check=True, cwd=lab_folder)


def test_features_by_name_are_those_that_the_command_line_exports(experiment, crossreel, tmp_path):
    assert crossreel("export", "features", "clip", tmp_path, experiment.path).code == 0
    ids = [f"clip{n:02}" for n in range(12)]
    clip = experiment.store["clip"]
    assert clip.keys() == list(clip) == ids and len(clip) == 12
    exported = {path.stem: np.load(path) for path in tmp_path.glob("*.npz")}
    keys = experiment._project().contents.names("items")
    for name, arrays in clip.items():
        for output in ("frame", "time"):
            assert np.array_equal(arrays[output], exported[keys[name]][output])


def test_features_of_a_split_end_to_end_padded_and_as_tensors(experiment):
    clip = experiment.store["clip"].split("test")
    rows = clip.numpy("time")
    assert rows.ids == ["clip03", "clip07", "clip11"]
    assert [part.tolist() for part in rows.parts()] == [clip[name]["time"].tolist() for name in rows.ids]
    rows.lengths[0] -= 2  # as if the first video were shorter
    padded, mask = library.Rows(rows.ids, rows.values[2:], rows.lengths).padded()
    assert mask.sum(1).tolist() == rows.lengths.tolist()
    assert (padded[0, -2:] == 0).all() and np.array_equal(padded[1], clip["clip07"]["time"])
    for data in (clip.torch("frame"), pickle.loads(pickle.dumps(clip.torch("frame")))):
        name, tensors = data[1]
        assert (name, len(data), set(tensors)) == ("clip07", 3, {"frame"})
        assert np.array_equal(tensors["frame"].numpy(), clip["clip07"]["frame"])
    captions = experiment.store["clip_text"].split("val")
    assert captions.keys()[:2] == ["clip02.mp4#0", "clip02.mp4#1"]


def test_what_is_not_there_is_named_with_the_nearest(experiment):
    clip = experiment.store["clip"]
    with pytest.raises(
        library.Error, match=r"no item 'clip0' among the items of .*; did you mean 'clip\d\d'\?"
    ):
        clip["clip0"]
    for call, words in (
        (lambda: experiment.store["clpi"], r"'clpi' has no features in .*; did you mean 'clip'\?"),
        (lambda: experiment.store["train-hlformer"], "train-hlformer is made once for the whole corpus"),
        (lambda: clip.split("tset"), r"no split 'tset'; did you mean 'test'\?"),
        (lambda: clip.numpy("frames"), r"stage clip has no output 'frames'; did you mean 'frame'\?"),
        (lambda: clip.file("clip00"), "the stage clip makes no files"),
        (lambda: experiment.plan()["clipp"], r"unknown stage 'clipp'; did you mean 'clip'\?"),
        (lambda: experiment.runs["gare"], "'gare' is not a method of"),
        (lambda: experiment.runs["hlformer"].metrics("val"), "was evaluated on test, not on the split 'val'"),
        (lambda: experiment.runs["hlformer"].embed_texts("a dog"), r"write \['a dog'\]"),
        (lambda: library.open("nowhere.toml"), "no experiment file nowhere.toml"),
        (lambda: library.open(experiment.path, set={"trainers.hlformer.lrr": 1}), "did you mean 'lr'"),
        (lambda: library.extract("clpi", "a.mp4"), r"unknown stage 'clpi'; did you mean 'clip'\?"),
        (lambda: library.extract("clip", "a.mp4", modell="x"), "unknown setting extractors.clip.modell"),
        (lambda: library.compare(experiment.runs[0]), "name two or more runs"),
    ):
        with pytest.raises(library.Error, match=words):
            call()
    assert "clip03" in clip and "clip0" not in clip and "clip" in experiment.store


def test_an_item_that_failed_raises_its_reason_and_one_that_is_not_made_says_so(small):
    (small.folder / "broken.mp4").write_bytes(b"no video at all")
    small.corpus(["clip00.mp4", "broken.mp4", "gone.mp4"])
    experiment = library.open(small.toml, quiet=True)
    before = experiment.store["compress"]
    assert before.missing == ["clip00", "broken"] and not before.keys()
    with pytest.raises(library.Error, match="compress of clip00 is not made yet"):
        before["clip00"]
    outcome = experiment.run()
    compress = experiment.store["compress"]
    assert outcome.ran == ["compress"] and outcome.experiment is experiment
    assert compress.keys() == ["clip00"] and compress.file("clip00").is_file()
    with pytest.raises(library.ItemError) as caught:
        compress["broken"]
    assert isinstance(caught.value, library.Error) and caught.value.item == "broken"
    reasons = {each.item: each.reason for each in outcome.failures}
    assert reasons == compress.failed and caught.value.reason == reasons["broken"]
    with pytest.raises(library.ItemError, match=r"gone: the media file .*gone\.mp4 does not exist"):
        compress["gone"]
    again = experiment.run(set={"extractors.compress.fps": 1.0})
    assert again.ran == ["compress"] and again.experiment is not experiment
    assert len(again.experiment.store["compress"]["clip00"]["time"]) == 2
    assert len(experiment.store["compress"]["clip00"]["time"]) == 6
    experiment.close()
    with pytest.raises(library.Error, match="is closed"):
        again.experiment.plan()


def test_a_closed_experiment_and_one_of_another_thread_say_what_to_do(small):
    experiment = library.open(small.toml, quiet=True)
    raised: list[Exception] = []

    def ask() -> None:
        try:
            experiment.store["compress"]
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert isinstance(raised[0], library.Error) and "open it again in this one" in str(raised[0])
    experiment.close()
    for call in (
        lambda: experiment.store["compress"],
        lambda: experiment.runs[0],
        experiment.plan,
        experiment.run,
    ):
        with pytest.raises(library.Error, match=r"the experiment .* is closed; open it again"):
            call()


def test_extraction_of_files_keeps_what_fails_apart(rendered, tmp_path):
    video, missing = str(rendered / "clip00.mp4"), str(tmp_path / "gone.mp4")
    found = library.extract("compress", [video, missing], fps=1.0, store=tmp_path / "store")
    assert list(found) == [video] and list(found.failed) == [missing]
    assert len(found[video]["time"]) == 2
    kept = sorted((tmp_path / "store/segments").rglob("*.h5"))
    times = library.extract("compress", video, set=["extractors.compress.fps=1.0"], store=tmp_path / "store")
    assert np.array_equal(times["time"], found[video]["time"])
    assert sorted((tmp_path / "store/segments").rglob("*.h5")) == kept  # nothing was made again
    with pytest.raises(library.ItemError, match="does not exist"):
        library.extract("compress", missing)


def test_settings_of_a_program_are_those_of_the_command_line():
    given = {
        "run": {"device": "cpu"},
        "trainers.gare.lr": 1e-4,
        "a.b": True,
        "c": ["x", 'q"'],
        "d": np.int64(3),
    }
    assert as_sets(given) == [
        'run.device="cpu"', "trainers.gare.lr=0.0001", "a.b=true", 'c=["x", "q\\""]', "d=3"
    ]  # fmt: skip
    assert as_sets("a=1") == as_sets(["a=1"]) == ["a=1"]
    with pytest.raises(library.Error, match="a = None is not possible"):
        as_sets({"a": None})


def test_a_table_becomes_a_frame_where_the_library_is_installed(monkeypatch):
    table = Table([{"metric": "R@1", "value": 20.0}, {"metric": "R@5", "value": 50.0}], ("metric", "value"))
    assert table.where(metric="R@5").column("value") == [50.0]
    with pytest.raises(library.Error, match="no column 'mtric'; possible: metric, value"):
        table.where(mtric="R@1")
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
        with pytest.raises((library.Error, ModuleNotFoundError), match=name):
            getattr(table, name)()
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(DataFrame=lambda rows, **more: (rows, more)))
    assert table.pandas() == (list(table), {"columns": ["metric", "value"]})
    assert table.polars() == ({"metric": ["R@1", "R@5"], "value": [20.0, 50.0]}, {})


def test_every_public_name_is_listed_once_and_is_there():
    assert sorted(library.__all__) == sorted({*library._MODULE_OF, "__version__"})
    for name, module in library._MODULE_OF.items():
        assert getattr(library, name) is getattr(import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        library.opne  # noqa: B018
