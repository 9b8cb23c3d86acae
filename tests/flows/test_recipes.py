"""Recipes in experiments: who chooses them, what they fill, and which of them are refused before a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import graph
from flows.experiment import Experiment
from pipeline.corpus.importers.msvd import MSVD
from pipeline.corpus.importers.published import Choice, read_published
from pipeline.corpus.manifest import write_manifest
from pipeline.errors import UserError
from trainers.config import MethodConfig
from trainers.recipes import choose, recipes

PROTOCOL = {"name": "MSR-VTT 1k-A", "sentence": "MSR-VTT 1k-A: trained on the 9k list"}
SMALL = """
corpus = "corpus.jsonl"
methods = ["gare", "hlformer"]
[extractors.clip]
model = "crossreel-demo"
weights = "seed:0"
[trainers.gare]
base_encoder = "crossreel-demo"
backbone_weights = "seed:0"
"""


@pytest.fixture
def msvd(tmp_path: Path) -> Path:
    """An experiment on six videos, imported as MSVD; nothing opens the videos."""
    names = [f"{split}{n}" for split in ("train", "val", "test") for n in (0, 1)]
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}_list.txt").write_text(f"{split}0\n{split}1\n")
    (tmp_path / "raw-captions.json").write_text(json.dumps({name: [["it", "is", name]] for name in names}))
    for name in names:
        (tmp_path / f"{name}.mp4").write_text(name)
    found = read_published(MSVD, tmp_path, tmp_path, Choice())
    write_manifest(tmp_path / "corpus.jsonl", found.items, found.protocol)
    (tmp_path / "e.toml").write_text(SMALL)
    return tmp_path / "e.toml"


def settings(given: dict[str, Any], protocol: dict[str, Any] | None = PROTOCOL) -> MethodConfig:
    """The settings that GARE is trained with."""
    experiment = Experiment(corpus="c.jsonl", methods=["gare"], trainers={"gare": given})
    stages = graph.build(experiment, {}, graph.choices(experiment, protocol))
    params: MethodConfig = stages["train-gare"].params
    return params


def test_the_protocol_of_the_corpus_fills_what_is_not_set_unless_the_recipe_is_none() -> None:
    filled = settings({"lr": 5e-5})
    assert (filled.recipe, filled.lr, filled.precision) == ("msrvtt", 5e-5, "fp16-legacy")
    assert settings({"trajectory": "stable"}).precision == "fp32"
    assert settings({"recipe": "none"}).precision == "fp32" == settings({}, None).precision
    assert settings({"recipe": "didemo"}).model_dump()["max_frames"] == 64
    assert settings({"kl_reduction": "dim"}).model_dump()["beta"] == 0.07
    assert settings({"recipe": "msvd", "kl_reduction": "dim"}).model_dump()["beta"] == 0.07


def test_methods_whose_recipes_need_different_frames_are_refused_with_what_to_set() -> None:
    def build(**neighborretr: Any) -> None:
        both = Experiment(
            corpus="c.jsonl", methods=["gare", "neighborretr"], trainers={"neighborretr": neighborretr}
        )
        graph.build(both, {}, graph.choices(both, PROTOCOL))

    with pytest.raises(
        UserError, match=r"different extractors\.frames\.select, 'uniform' and 'head'"
    ) as refused:
        build()
    assert 'trainers.neighborretr.trajectory = "stable", train them in two experiments' in str(refused.value)
    build(trajectory="stable")
    with pytest.raises(UserError, match="select") as refused:
        build(trajectory="stable", frame_select="head")
    assert "trajectory" not in str(refused.value), "another trajectory would not help"


def test_a_preset_is_unknown_to_methods_that_never_had_one() -> None:
    with pytest.raises(UserError, match=r"unknown setting trainers\.gare\.preset"):
        settings({"preset": "msrvtt"})


def test_fingerprints_hold_the_settings_and_not_the_name_of_the_recipe() -> None:
    (row,) = [row for row in recipes("gare") if row.name == "msrvtt"]
    named, written = settings({"recipe": "msrvtt"}), settings({**row.filled("release"), "recipe": "none"})
    assert named.recipe != written.recipe and named.decisive() == written.decisive()
    assert named.decisive() != settings({"recipe": "none"}).decisive()


def test_weights_to_start_from_have_settings_of_their_own() -> None:
    choice = choose("gare", {"weights": "theirs"}, PROTOCOL)
    assert choice.row is None and "trainers.gare.weights were trained" in choice.sentence
    assert choose("gare", {"weights": "theirs", "recipe": "msrvtt"}, PROTOCOL).row is not None


def test_plan_says_which_recipe_gives_the_settings_and_how_the_run_differs(
    msvd: Path, crossreel: Callable[..., Any]
) -> None:
    ended = crossreel("plan", msvd)
    told = " ".join(ended.out.split())
    assert "gare: recipe msvd, trajectory release, because the corpus is MSVD lists" in told
    assert "hlformer: no recipe, because nobody published this method's settings for MSVD lists" in told
    assert "gare is not the published experiment gare/msvd" in told
    assert "random weights of clip (seed:0)" in told and "2 items of train; published: 1,200" in told
    stages = json.loads(crossreel("plan", msvd, "--json").out)
    assert stages["train-gare"]["published"]["recipe"] == "msvd"
    assert "published" not in stages["clip"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "trainers.gare.recipe=msrvtt",
            "trainers.gare.recipe = 'msrvtt': it is of MSR-VTT 1k-A, and corpus.jsonl was imported as MSVD lists",
        ),
        ("trainers.gare.recipe=msrvtt", "possible: msvd, none"),
        (
            "trainers.gare.recipe=msvd",
            "trainers.gare.batch_size = 128: the recipe 'msvd' needs at least one whole batch, and 'train' has 2 "
            "captions; set it to 2 or less",
        ),
        (
            "trainers.gare.recipe=msvdd",
            "trainers.gare.recipe = 'msvdd' is not possible: there is no such recipe; did",
        ),
        (
            "trainers.gare.trajectory=stabel",
            "trainers.gare.trajectory = 'stabel' is not possible: did you mean",
        ),
        (
            "trainers.hlformer.preset=tvx",
            "trainers.hlformer.preset = 'tvx' is not possible: there is no such recipe",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_the_run(
    change: str, words: str, msvd: Path, crossreel: Callable[..., Any]
) -> None:
    ended = crossreel("plan", msvd, "--set", change)
    assert ended.code == 2 and words in " ".join(ended.err.split())


def test_a_preset_of_an_older_file_works_with_a_word_of_advice(
    msvd: Path, crossreel: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    ended = crossreel("plan", msvd, "--set", "trainers.hlformer.preset=act", "--json")
    assert 'trainers.hlformer.preset = "act" is an older word: write recipe = "activitynet"' in (
        ended.err + caplog.text
    )
    again = crossreel("plan", msvd, "--set", "trainers.hlformer.recipe=activitynet", "--json")
    digests = [json.loads(e.out)["train-hlformer"]["fingerprint"] for e in (ended, again)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("recipe", ["tvr", "none"])
def test_a_preset_beside_a_recipe_is_refused(msvd: Path, crossreel: Callable[..., Any], recipe: str) -> None:
    both = ("--set", f"trainers.hlformer.recipe={recipe}", "--set", "trainers.hlformer.preset=act")
    ended = crossreel("plan", msvd, *both)
    assert ended.code == 2 and ended.out == ""
    assert (
        f'trainers.hlformer.recipe = "{recipe}" and trainers.hlformer.preset = "act" both choose' in ended.err
    )
