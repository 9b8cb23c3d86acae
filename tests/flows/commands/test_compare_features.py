"""`compare features`: stages, exports, folders and files against each other, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from flows.cli import app as crossreel
from flows.commands.compare import app as group
from pipeline.errors import UserError

TINY = Path(__file__).parents[2] / "fixtures/hlformer/mssl_tiny/tiny"
SETTINGS = """
corpus = "corpus.jsonl"
methods = ["hlformer"]
[trainers.hlformer]
video_features = "import-i3d_toy"
text_features = "import-roberta_tiny_query_feat"
"""

comparing = typer.Typer()
comparing.add_typer(group, name="compare")
FEATURES = ("compare", "features")


def call(app: Any, *words: object, code: int = 0) -> str:
    """What a verb prints; fails with what it raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, (words, result.output, result.exception)
    return result.stdout


def compare(*words: object, code: int = 0) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(call(comparing, *FEATURES, *words, "--json", code=code))
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with imported features, an experiment on them, and their exports."""
    folder = tmp_path_factory.mktemp("compared")
    call(crossreel, "import", "features", TINY, "--store", folder / "store", "--out", folder / "corpus.jsonl")
    (folder / "experiment.toml").write_text(SETTINGS)
    for layout in ("npz", "safetensors", "ms-sl"):
        call(
            crossreel, "export", "features", "import-i3d_toy", folder / layout, folder / "experiment.toml",
            "--layout", layout,
        )  # fmt: skip
    return folder


def rows_of(folder: Path) -> dict[str, np.ndarray]:
    index = json.loads((folder / "npz/index.json").read_text())["files"]
    return {name: np.load(folder / "npz" / file)["row"] for name, file in index.items()}


def changed(folder: Path, target: Path, change: Any) -> Path:
    """The exported rows, changed, as a folder of .npy files in another order."""
    target.mkdir()
    for name, rows in reversed(rows_of(folder).items()):
        np.save(target / f"{name}.npy", change(rows))
    return target


@pytest.mark.parametrize("other", ["npz", "safetensors", "ms-sl"])
def test_a_stage_is_the_same_as_its_exports(folder, other):
    told = compare(f"{folder}/experiment.toml:import-i3d_toy", folder / other)
    assert list(told["summary"]["kinds"]) == ["equal"] and told["summary"]["worst_cosine"] == pytest.approx(1)
    assert (told["only_a"], told["only_b"], told["failed"]) == (0, 0, {})


def test_a_stage_is_the_same_as_itself_and_as_the_collection_it_came_from(folder):
    stage = ("--experiment", folder / "experiment.toml")
    assert list(compare("import-i3d_toy", "import-i3d_toy", *stage)["summary"]["kinds"]) == ["equal"]
    words = compare("import-roberta_tiny_query_feat", TINY, "--of", "captions", *stage)
    assert list(words["summary"]["kinds"]) == ["equal"] and words["summary"]["items"] > 5


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda r: np.ascontiguousarray(r.astype(np.float16)), "float16"),
        (lambda r: r * 4, "scaled"),
        (lambda r: r[:, :-1], "incomparable"),
    ],
)
def test_what_was_done_to_the_rows_is_counted_over_the_items(folder, tmp_path, change, kind):
    told = compare(folder / "npz", changed(folder, tmp_path / "x", change))
    assert told["summary"]["kinds"] == {kind: len(rows_of(folder))}


def test_every_third_row_is_reported_with_its_stride_in_the_table(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for n in range(25):
            rows = rng.normal(size=(30 + n, 8))
            file[f"clip{n}/features"] = rows
            np.save(tmp_path / "a" / f"clip{n}.npy", rows[::3])
    told = call(comparing, *FEATURES, tmp_path / "all.h5", tmp_path / "a", "--dataset", "features")
    assert "25 of 25: the same frames at a stride of 3" in told and "the worst 20 of 25 items" in told
    assert told.count("the same frames at a stride of 3") == 21


def test_items_that_cannot_be_compared_are_named_and_counted(folder, tmp_path):
    target = changed(folder, tmp_path / "x", lambda r: r)
    first, second, *_ = rows_of(folder)
    (target / f"{first}.npy").write_bytes(b"")
    (target / f"{second}.npy").rename(target / "somebody.npy")
    words = (folder / "npz", target)
    told = compare(*words, code=3)
    assert list(told["failed"]) == [first] and (told["only_a"], told["only_b"]) == (1, 1)
    table = call(comparing, *FEATURES, *words, code=3)
    assert (
        f"cannot be compared: {first}: it cannot be read" in table and "only in A: 1, only in B: 1" in table
    )


def test_what_is_not_there_is_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match=r"'clip' is neither a folder or file of features nor a stage"):
        compare("clip", folder / "npz", "--experiment", tmp_path / "no.toml")
    with pytest.raises(
        UserError, match=r"'clpi' has no features in .*experiment.toml; possible: import-i3d_toy"
    ):
        compare(f"{folder}/experiment.toml:clpi", folder / "npz")
    np.save(tmp_path / "q.npy", np.ones((2, 3)))
    with pytest.raises(UserError, match=r"'q' is the first of 1\).*have no name in common"):
        compare(tmp_path / "q.npy", folder / "npz")
    with pytest.raises(UserError, match="--of 'videos' is not possible"):
        compare(tmp_path / "q.npy", folder / "npz", "--of", "videos")
