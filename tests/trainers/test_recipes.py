"""Published experiments as data: every row is possible, and a corpus finds its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.commands.corpus import VIDEOS
from pipeline.corpus.importers.published import Choice, Published, read_published
from pipeline.corpus.importers.t3dr_hit import SUBSETS
from pipeline.corpus.manifest import Corpus, write_manifest
from pipeline.errors import UserError
from pipeline.settings import fill
from trainers import recipes
from trainers.recipes import PublishedRecipe, every_recipe
from trainers.registry import METHODS

ROWS = every_recipe()
NAMES = [f"{row.method}/{row.name}" for row in ROWS]


def row(name: str) -> PublishedRecipe:
    return next(row for row in ROWS if f"{row.method}/{row.name}" == name)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
@pytest.mark.parametrize("trajectory", recipes.TRAJECTORIES)
def test_every_row_is_possible_settings_of_its_method(row: PublishedRecipe, trajectory: Any) -> None:
    config = METHODS.find(row.method).config
    filled = fill(config, row.filled(trajectory), "")
    assert (
        filled.model_dump().items()
        >= {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in row.filled(trajectory).items()
        }.items()
    )


def test_names_and_aliases_are_unique_within_a_method() -> None:
    names = [(row.method, name) for row in ROWS for name in (row.name, *row.aliases)]
    assert len(names) == len(set(names))


def test_what_nobody_published_is_not_called_published_and_everything_else_has_a_source() -> None:
    assert {name for name, row in zip(NAMES, ROWS, strict=True) if not row.published} == {
        "neighborretr/msvd",
        "neighborretr/didemo",
    }
    assert all(bool(row.source) == row.published for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_data_sets_and_protocols_are_those_of_the_importers(row: PublishedRecipe) -> None:
    if row.dataset == "t3dr-hit":
        assert set(row.protocols) <= set(SUBSETS)
    elif row.dataset in VIDEOS:
        corpus = VIDEOS[row.dataset]
        assert recipes.dataset_name(row.dataset) == corpus.name
        assert set(row.protocols) <= set(corpus.protocols)
        assert (row.captions in corpus.units) if corpus.units else not row.captions
    else:
        assert row.dataset == "lsmdc"


def lists(folder: Path) -> Path:
    """MSVD's annotation files of six videos."""
    for split in ("train", "val", "test"):
        (folder / f"{split}_list.txt").write_text(f"{split}0\n{split}1\n")
    captions = ", ".join(f'"{s}{n}": [["{s}", "moves"]]' for s in ("train", "val", "test") for n in (0, 1))
    (folder / "raw-captions.json").write_text("{" + captions + "}")
    return folder


def imported(folder: Path, corpus: Published) -> Corpus:
    found = read_published(corpus, lists(folder), folder, Choice(no_media=True))
    write_manifest(folder / "corpus.jsonl", found.items, found.protocol)
    return Corpus.read(folder / "corpus.jsonl")


def test_an_imported_corpus_finds_the_row_of_its_protocol(tmp_path: Path) -> None:
    protocol = imported(tmp_path, VIDEOS["msvd"]).protocol("train")
    found = {
        method: recipes.fitting(recipes.recipes(method), protocol, {})
        for method in ("gare", "lean", "clip4clip", "hlformer", "neighborretr")
    }
    assert {method: row and row.name for method, row in found.items()} == {
        "gare": "msvd",
        "lean": "msvd",
        "clip4clip": "msvd",
        "hlformer": None,
        "neighborretr": None,  # there is a row, but nobody published it
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "msvd"),
        ({"sim_header": "seqLSTM"}, "msvd-seqLSTM"),
        ({"epochs": 0, "mode": "frozen"}, "msvd-zero-shot"),
        ({"epochs": 0, "weights": "theirs"}, "msvd"),
    ],
)
def test_of_several_rows_that_is_taken_which_agrees_with_what_is_set(
    given: dict[str, Any], expected: str
) -> None:
    found = recipes.fitting(recipes.recipes("clip4clip"), {"name": "MSVD lists", "sentence": ""}, given)
    assert found is not None and found.name == expected


def test_paragraphs_and_moments_of_one_data_set_are_different_experiments() -> None:
    name = "ActivityNet Captions val_1"
    moments = {"name": name, "sentence": "x; every sentence is a caption"}
    paragraphs = {"name": name, "sentence": "x; all sentences of a video are one caption"}
    assert recipes.of_corpus(row("hlformer/activitynet"), moments)
    assert not recipes.of_corpus(row("hlformer/activitynet"), paragraphs)
    assert recipes.of_corpus(row("gare/activitynet"), paragraphs)
    assert not recipes.of_corpus(row("gare/activitynet"), None)


def test_an_unknown_recipe_is_refused_with_the_nearest_name_and_the_list() -> None:
    with pytest.raises(UserError, match="did you mean 'msrvtt'") as refused:
        recipes.find("gare", "msrvt")
    assert "possible: msrvtt, msrvtt-dim, msvd, didemo, activitynet, none" in str(refused.value)
    assert recipes.find("hlformer", "act") == row("hlformer/activitynet")
    assert recipes.find("gare", "none") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # of the papers and releases, transcribed a second time
        ("hlformer/tvr", {"epochs": 100, "batch_size": 128, "lr": 3e-4, "dropout": 0.2, "tau": 0.09}),
        ("hlformer/activitynet", {"lr": 2.5e-4, "diversity_weight": 3e-3, "tau": 0.6, "dropout": 0.31}),
        ("hlformer/charades", {"lr": 2e-4, "clip_nce_weight": 0.02, "margin": 0.2, "dropout": 0.25}),
        (
            "neighborretr/msrvtt",
            {"max_words": 24, "max_frames": 12, "frame_select": "head", "bank_size": 480},
        ),
        ("neighborretr/activitynet", {"max_words": 64, "max_frames": 64, "epochs": 10, "bank_size": 240}),
        ("gare/msrvtt", {"max_words": 32, "temp": 3, "alpha": 2, "beta": 1e-4, "encoder_grad_scale": 0.25}),
        ("gare/msrvtt-dim", {"kl_reduction": "dim", "beta": 0.07}),
        ("gare/msvd", {"agg_module": "None", "epochs": 5, "max_frames": 12}),
        ("gare/didemo", {"max_words": 64, "max_frames": 64, "epochs": 5}),
        ("gare/activitynet", {"max_words": 64, "max_frames": 64, "epochs": 10}),
        ("lean/msrvtt", {"epochs": 30, "batch_size": 16, "lr": 3e-5, "frames": 10}),
        ("h2arn/t3dr-hit-elephant", {"epochs": 100, "batch_size": 256, "lr": 2e-3, "nhead": 64}),
        ("clip4clip/lsmdc-seqTransf", {"sim_header": "seqTransf", "coef_lr": 1e-3, "lr": 1e-4}),
        ("clip4clip/didemo", {"max_words": 64, "max_frames": 64, "sim_header": "meanP"}),
        ("clip4clip/msvd-zero-shot", {"epochs": 0, "normalise_frames": False, "mode": "frozen"}),
    ],
)
def test_rows_hold_the_published_values(name: str, expected: dict[str, Any]) -> None:
    assert row(name).filled("release").items() >= expected.items()


def test_the_stable_trajectory_trains_float32_towers_with_their_true_gradient() -> None:
    for name in ("gare/msrvtt", "clip4clip/msrvtt", "neighborretr/msrvtt"):
        assert row(name).filled("release")["precision"] == "fp16-legacy"
        stable = row(name).filled("stable")
        assert (stable["precision"], stable["coef_lr"]) == ("fp32", 1e-2)
        assert stable.get("encoder_grad_scale", 1.0) == 1.0 and stable.get("gather_grad", "sum") == "sum"
